"""Language models of multimodal families that differ from text-only ones in their names alone."""

from __future__ import annotations

from collections.abc import Mapping

from vllm_nfp.principle.families.shared import LLAMA, QWEN2, QWEN3, WINDOWS
from vllm_nfp.principle.family import Family

LANGUAGE_PARTS: Mapping[str, Family] = {
    "qwen2_vl": QWEN2,
    "qwen2_vl_text": QWEN2,
    "qwen2_5_vl": QWEN2,
    "qwen2_5_vl_text": QWEN2,
    "qwen2_5_omni_text": QWEN2,
    "qwen2_audio": QWEN2,
    "qwen3_vl_text": QWEN3,
    "qwen3_asr_text": QWEN3,
    "mimo_audio": QWEN2,
    "keye": QWEN3,
    "keye_text": QWEN3,
    "keyevl1_5": QWEN3,
    "isaac": QWEN3,
    "dots_ocr": QWEN2,
    "opencua": QWEN2,
    "bagel": QWEN2,
    "bee": QWEN3,
    "minicpmv": QWEN2,
    "minicpmo": QWEN2,
    "voxtral_realtime_text": WINDOWS,
    "granite4_vision_text": LLAMA,
    "paddleocr_vl": LLAMA,
    "paddleocr_vl_text": LLAMA,
    "hunyuan_vl_text": LLAMA,
    "openpangu_vl_text": LLAMA,
    "moondream3_text": LLAMA,
    "emu3_text_model": LLAMA,
    "phi3_v": WINDOWS,
    "phi4mm": WINDOWS,
    "phi4_multimodal": WINDOWS,
    "phi4-siglip": WINDOWS,
    "glm4v": LLAMA,
    "glm4v_text": LLAMA,
    "glm_ocr_text": LLAMA,
}
