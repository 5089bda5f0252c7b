# Sourced on a GPU host without network: unpacks vLLM from the archive given as $1 into /tmp/site
# and makes this checkout visible there as an installed distribution, so that vLLM finds its plugin.
site=/tmp/site
if [ ! -d "$site/vllm" ]; then
    mkdir -p "$site" && tar -xf "$1" -C "$site"
fi
info="$site/vllm_nfp-0.1.0.dist-info"
mkdir -p "$info"
printf 'Metadata-Version: 2.1\nName: vllm-nfp\nVersion: 0.1.0\n' > "$info/METADATA"
printf '[vllm.general_plugins]\nnfp = vllm_nfp.plugin:register\n' > "$info/entry_points.txt"
export PYTHONPATH="$site:$PWD" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1
export VLLM_USE_FLASHINFER_SAMPLER=0
# Ranks of experts exchange tokens through vLLM's own binding to NCCL, which looks for a library of
# that name; PyTorch may keep its NCCL elsewhere, or within its own library.
VLLM_NCCL_SO_PATH=$(python3 "$PWD/benchmarks/find_nccl.py") && export VLLM_NCCL_SO_PATH || unset VLLM_NCCL_SO_PATH
