"""Bytes per weight of each part of a model, from the quantization_config of its config.json.

Read: fp8 and fbgemm_fp8 (per tensor, per channel, per block), modelopt (FP8, NVFP4, MX; alike in
all modules or module by module), compressed-tensors with any groups of FP8, integers, FP4 or MX,
GPTQ and AWQ (``dynamic`` too), auto-round, bitsandbytes, quark, torchao, fp_quant, experts_int8 and
mxfp4 experts. FP4
weights are taken to multiply in 16 bits and 8-bit integers to take the time of FP8; the result says
so. Whatever else a checkpoint may say is refused, since no kernel model here describes it;
``weight_bits`` then says what to assume.

Parts that the config leaves in 16 bits are found by name. A part that is quantized in some layers
or modules only has the mean over them, each counting alike. The router always has 16 bits, and so
has the embedding. The LM head has, unless the config names it, or ModelOpt does not leave it out.
"""
