"""Fields of a config.json that cost a decode step nothing, or that any shape describes.

Of an unknown family, whatever is not among them is named: it may change the cost.
"""

from __future__ import annotations

import re

_READ = (
    "model_type architectures num_hidden_layers hidden_size num_attention_heads head_dim "
    "num_key_value_heads intermediate_size vocab_size tie_word_embeddings layer_types hidden_act "
    "hidden_activation activation_function sliding_window use_sliding_window max_window_layers "
    "quantization_config compression_config text_config llm_config canvas_length block_size"
)
_FREE = (
    "auto_map torch_dtype dtype transformers_version use_cache tokenizer_class problem_type "
    "max_position_embeddings max_sequence_length seq_length model_max_length n_positions "
    "original_max_position_embeddings rms_norm_eps layer_norm_eps layer_norm_epsilon norm_eps "
    "layernorm_epsilon norm_epsilon initializer_range init_std attention_bias mlp_bias qkv_bias "
    "use_bias use_qkv_bias add_qkv_bias add_bias_linear bias attention_out_bias o_bias use_qk_norm "
    "qk_norm qk_layernorm use_qk_layernorm attention_dropout hidden_dropout resid_pdrop embd_pdrop "
    "attn_pdrop dropout pretraining_tp partial_rotary_factor rotary_dim rotary_pct rope "
    "attn_implementation gradient_checkpointing id2label label2id is_decoder return_dict "
    "output_attentions output_hidden_states torchscript pruned_heads name revision cpu_offload "
    "embedding_multiplier residual_multiplier logits_scaling attention_multiplier logit_scale "
    "scale_emb scale_depth dim_model_base final_logit_softcapping attn_logit_softcapping clip_qkv "
    "parallel_attn use_parallel_residual query_pre_attn_scalar norm_type norm_topk_prob mup "
    "num_nextn_predict_layers num_mtp_modules softmax_scale chunk_size_feed_forward "
    "finetuning_task mup_denominator"
)
_PLAIN = frozenset(f"{_READ} {_FREE}".split())
_PATTERN = re.compile(
    r"^_|_token(?:_id|_ids|_index)?$|^(?:rope|rotary|vision|visual|image|video|audio|mtp)_|rope_"
    r"|_coef$|loss|^(?:initiali[sz]er|generation|task_specific|tf_|summary_|num_beam)"
)


def unknown_fields(names: list[str]) -> list[str]:
    """Those of the names that may change the cost, in their order."""
    return [name for name in names if name not in _PLAIN and not _PATTERN.search(name)]
