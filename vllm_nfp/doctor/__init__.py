"""What is installed here, what will work, and what will not and why.

Every check is a function in :data:`vllm_nfp.doctor.diagnosis.CHECKS` and yields findings. Nothing
heavy is imported: versions come from the packages' metadata, hooks are looked up in vLLM's sources,
and what only torch or vLLM can say is asked of processes of their own.
"""

from vllm_nfp.doctor.asking import Answer, BadQuestionError, Question, ask_vllm
from vllm_nfp.doctor.diagnosis import Diagnosis, diagnose
from vllm_nfp.doctor.findings import Finding, Status

__all__ = [
    "Answer",
    "BadQuestionError",
    "Diagnosis",
    "Finding",
    "Question",
    "Status",
    "ask_vllm",
    "diagnose",
]
