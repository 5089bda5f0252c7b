"""In how many public serving recipes the probe runs, and what keeps it off in the others.

``python -m benchmarks.recipes RECIPES`` reads a checkout of github.com/vllm-project/recipes and
puts each command line to the check that the server and ``vllm-nfp doctor`` make
(:func:`vllm_nfp.adapter.support.decide`). It needs vLLM, no GPU and no model.

Flags are read by vLLM's own parser. What is known of a model before it is loaded (multimodal,
recurrent state, encoder-decoder, kinds of KV cache) is read from the sources of the installed vLLM,
by the architecture that :mod:`benchmarks.recipes.architectures` gives for it.
"""
