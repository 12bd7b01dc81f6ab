"""A model directory small enough to be made on the spot: what Dynamo reads of a model, without the model.

Frontend and mocker read the configuration and the tokenizer and never a weight, so four small JSON files are a
complete model to them; vLLM runs the same directory with `--load-format dummy`. Nothing is downloaded, and only the
standard library is used: the controller's environment need not have `tokenizers`.

The tokenizer is GPT-2's byte-level BPE by hand. Each of the 256 bytes is one printable symbol, so every text encodes
and decodes to itself; a few merges make common English words one token each, so token counts look like a model's.
`head_dim` is 64 (256 / 4): attention kernels refuse smaller ones.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
END_OF_TEXT, _, END_OF_TURN = range(len(SPECIAL_TOKENS))

VOCABULARY_SIZE = 512  # what config.json promises; the unused ids above the tokenizer's own only pad it
CONTEXT_LENGTH = 2048

# Words that become one token each, with and without the space before them.
_WORDS = ("hello", "world", "this", "is", "a", "the", "and", "you", "what", "who", "are", "small", "model", "count")

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tiny_model(directory: Path, context: int = CONTEXT_LENGTH) -> None:
    """Write the model into `directory`, made if missing. Equal bytes every time; safe to repeat."""
    directory.mkdir(parents=True, exist_ok=True)
    files: dict[str, Mapping[str, object]] = {
        "config.json": _config(context),
        "generation_config.json": {"bos_token_id": END_OF_TEXT, "eos_token_id": END_OF_TURN},
        "tokenizer.json": _tokenizer(),
        "tokenizer_config.json": _tokenizer_config(context),
    }
    for name, content in files.items():
        text = json.dumps(content, indent=1, ensure_ascii=False)
        (directory / name).write_text(text + "\n", encoding="utf-8")


def _config(context: int) -> Mapping[str, object]:
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_act": "silu",
        "hidden_size": 256,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "vocab_size": VOCABULARY_SIZE,
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "bos_token_id": END_OF_TEXT,
        "eos_token_id": END_OF_TURN,
    }


def _tokenizer_config(context: int) -> Mapping[str, object]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL_TOKENS[END_OF_TEXT],
        "eos_token": SPECIAL_TOKENS[END_OF_TURN],
        "model_max_length": context,
        "chat_template": CHAT_TEMPLATE,
    }


def _tokenizer() -> Mapping[str, object]:
    symbols = byte_symbols()
    merges = _merges(symbols)
    tokens = dict.fromkeys((*SPECIAL_TOKENS, *symbols, *(left + right for left, right in merges)))
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": number,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for number, token in enumerate(SPECIAL_TOKENS)
        ],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": [[left, right] for left, right in merges],
        },
    }


def byte_symbols() -> tuple[str, ...]:
    """The printable character that stands for each byte 0..255: itself where it has a shape, else U+0100 upwards."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    stand_ins = iter(range(0x100, 0x200))
    return tuple(chr(byte) if byte in printable else chr(next(stand_ins)) for byte in range(256))


def _merges(symbols: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Left-to-right merges that build each word, then the space before it, in the order BPE applies them.

    BPE always applies the earliest listed merge that fits. Listing the pairs of every word in full before the next word
    can let an early pair (`i`+`s`) eat into a later word (`th is`), so each word's pairs are derived from what the
    merges listed so far really leave of it.
    """
    merges: list[tuple[str, str]] = []
    for word in _WORDS:
        for text in (word, symbols[ord(" ")] + word):
            pieces = _apply(merges, list(text))
            while len(pieces) > 1:
                merges.append((pieces[0], pieces[1]))
                pieces = [pieces[0] + pieces[1], *pieces[2:]]
    return tuple(merges)


def _apply(merges: list[tuple[str, str]], pieces: list[str]) -> list[str]:
    for left, right in merges:
        merged: list[str] = []
        for piece in pieces:
            if merged and merged[-1] == left and piece == right:
                merged[-1] = left + right
            else:
                merged.append(piece)
        pieces = merged
    return pieces


if __name__ == "__main__":
    write_tiny_model(Path(sys.argv[1]))
