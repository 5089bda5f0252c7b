"""Run as a program: a server that streams tokens and tells metrics, as much as a benchmark asks.

fake_server.py PORT PROBED
"""

from __future__ import annotations

import asyncio
import json
import sys

from aiohttp import web

METRICS = """# TYPE vllm_nfp_state gauge
vllm_nfp_state{state="steady"} 1
# TYPE vllm_nfp_startup_seconds gauge
vllm_nfp_startup_seconds 1.5
# TYPE vllm_nfp_memory_bytes gauge
vllm_nfp_memory_bytes{kind="gpu"} 1048576
# TYPE vllm_nfp_probes counter
vllm_nfp_probes_total{outcome="startup"} 40
vllm_nfp_probes_total{outcome="prepared"} 3
vllm_nfp_probes_total{outcome="measured"} 2
# TYPE vllm_nfp_verification_steps counter
vllm_nfp_verification_steps_total{engine="0",costs="vllm"} 7
vllm_nfp_verification_steps_total{engine="0",costs="measured"} 5
# TYPE vllm_nfp_verification_measured_costs gauge
vllm_nfp_verification_measured_costs{engine="0",reason="few pairs"} 0
# TYPE vllm_nfp_verification_step_seconds gauge
vllm_nfp_verification_step_seconds{engine="0",source="real"} 0.02
vllm_nfp_verification_step_seconds{engine="0",source="vllm"} 0.03
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running 3
"""


async def complete(request: web.Request) -> web.StreamResponse:
    wanted = int((await request.json())["max_tokens"])
    answer = web.StreamResponse()
    await answer.prepare(request)
    for count in range(1, wanted + 1):
        await asyncio.sleep(0.004)
        event = {"choices": [{"text": ""}], "usage": {"completion_tokens": count}}
        await answer.write(f"data: {json.dumps(event)}\n\n".encode())
    await answer.write(b"data: [DONE]\n\n")
    return answer


async def tell(_: web.Request) -> web.Response:
    return web.Response(text=METRICS if sys.argv[2] == "True" else "")


async def models(_: web.Request) -> web.Response:
    return web.json_response({"data": [{"id": "tiny"}]})


async def healthy(_: web.Request) -> web.Response:
    return web.Response()


if __name__ == "__main__":
    app = web.Application()
    app.router.add_post("/v1/completions", complete)
    app.router.add_get("/metrics", tell)
    app.router.add_get("/health", healthy)
    app.router.add_get("/v1/models", models)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None)
