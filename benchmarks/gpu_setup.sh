# Sourced on a GPU host without network: unpacks vLLM from the archive given as $1 into /tmp/site
# and makes this checkout visible there as an installed distribution, so that vLLM finds its plugin.
# $2, if given, is a folder in which benchmarks/hosts/kept_caches.py has kept what vLLM compiled earlier.
# NFP_SITE names another folder to unpack into, for a second version of vLLM on the same host.
site=${NFP_SITE:-/tmp/site}
if [ ! -d "$site/vllm" ]; then
    mkdir -p "$site" && xz -dc -T0 "$1" | tar -xf - -C "$site"
fi
info="$site/vllm_nfp-0.1.0.dist-info"
mkdir -p "$info"
printf 'Metadata-Version: 2.1\nName: vllm-nfp\nVersion: 0.1.0\n' > "$info/METADATA"
printf '[vllm.general_plugins]\nnfp = vllm_nfp.plugin:register\n' > "$info/entry_points.txt"
# The archive was unpacked and not installed: it has no vllm command. Children are spawned, which runs
# the command's file once more under another name.
mkdir -p "$site/bin"
cat > "$site/bin/vllm" <<END
#!$(command -v python3)
import sys
from vllm.entrypoints.cli.main import main
if __name__ == "__main__":
    sys.exit(main())
END
chmod +x "$site/bin/vllm"
export PATH="$site/bin:$PATH"
export PYTHONPATH="$site:$PWD" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1
export VLLM_USE_FLASHINFER_SAMPLER=0
# A server imports some 4000 modules in each of three processes. Without byte code, which neither the
# archive nor every image holds, each process compiles them; an image may forbid to write it. What is
# not done within a minute is left to the first import.
unset PYTHONDONTWRITEBYTECODE
timeout 60 python3 "$PWD/benchmarks/hosts/byte_code.py" "$site" "$PWD/vllm_nfp" "$PWD/benchmarks"
if [ -n "${2:-}" ]; then
    python3 "$PWD/benchmarks/hosts/kept_caches.py" restore "$2"
fi
# vLLM 0.32 and 0.33 need NCCL 2.29.7 for two functions that put a server to sleep, and use no NCCL at
# all without them, so that data parallelism does not start. An older NCCL is enough without sleep.
sed -i 's/elif func.name == "ncclCommQueryProperties":/elif func.name in ("ncclCommQueryProperties", "ncclCommSuspend", "ncclCommResume"):/' \
    "$site/vllm/distributed/device_communicators/pynccl_wrapper.py"
# Ranks of experts exchange tokens through vLLM's own binding to NCCL, which looks for a library of
# that name; PyTorch may keep its NCCL elsewhere, or within its own library.
VLLM_NCCL_SO_PATH=$(python3 "$PWD/benchmarks/hosts/find_nccl.py") && export VLLM_NCCL_SO_PATH || unset VLLM_NCCL_SO_PATH
