"""HF-style folders of OFA: `config.json`, the vocabulary and its merges, generation settings, weights.

Field names are those of the ports' `OFAConfig` (the transformers branch of OFA's authors, and modelscope's). The vocabulary file
lists GPT-2's pieces as text with OFA's ids; ours keeps fairseq's `dict.txt`, which says the same by GPT-2's numbers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ofa_jax.config.errors import ConvertError
from ofa_jax.config.schema import BOS_ID, EOS_ID, PAD_ID, ModelConfig, VocabConfig
from ofa_jax.vocab import gpt2_bpe

CONFIG_FILE, VOCAB_FILE, MERGES_FILE, GENERATION_FILE = "config.json", "vocab.json", "merges.txt", "generation_config.json"
_RESNETS: dict[tuple[int, ...], str] = {(3, 4, 6): "resnet50", (3, 4, 23): "resnet101", (3, 8, 36): "resnet152", (2, 2, 2): "resnet18"}
# config.json's field -> ours, where both mean the same number
_FIELDS = {
    "d_model": "width", "encoder_ffn_dim": "ffn_width", "decoder_ffn_dim": "ffn_width", "encoder_attention_heads": "num_heads",
    "decoder_attention_heads": "num_heads", "encoder_layers": "encoder_layers", "decoder_layers": "decoder_layers",
    "token_bucket_size": "token_bucket_size", "image_bucket_size": "image_bucket_size", "attn_scale_factor": "attn_scale_factor",
    "code_image_size": "code_image_px",
}  # fmt: skip


def config_json(model: ModelConfig, vocab: VocabConfig) -> dict[str, Any]:
    """Returns the folder's `config.json`. Raises ConvertError for a model that the ports cannot build."""
    if model.adapter_width or any(model.prompt_lens):
        found = f"adapters of width {model.adapter_width} and prompts of {model.prompt_lens} places"
        raise ConvertError(f"model: found {found}, expected neither: HF-style ports have no such parts; --layout=fairseq has")
    if model.resnet.blocks not in _RESNETS or model.resnet.base_width != 64 or model.resnet.expansion != 4:
        found = f"stages {model.resnet.blocks} of width {model.resnet.base_width}"
        raise ConvertError(f"model.resnet: found {found}, expected one of {sorted(_RESNETS)} of width 64, as HF-style ports have no other")
    if model.num_source_positions != model.num_target_positions:
        raise ConvertError(
            f"model.num_target_positions: found {model.num_target_positions}, expected {model.num_source_positions} as in the encoder: "
            "the HF-style config has one number for both"
        )
    return {
        "architectures": ["OFAModel"],
        "model_type": "ofa",
        "vocab_size": vocab.size,
        "max_position_embeddings": model.num_source_positions - 2,
        **{theirs: getattr(model, ours) for theirs, ours in _FIELDS.items()},
        "resnet_type": _RESNETS[model.resnet.blocks],
        "resnet_drop_path_rate": model.resnet.drop_path_rate,
        "resnet_model_path": None,
        "dropout": model.dropout,
        "attention_dropout": model.attention_dropout,
        "activation_dropout": model.activation_dropout,
        "encoder_drop_path_rate": model.encoder_drop_path_rate,
        "decoder_drop_path_rate": model.decoder_drop_path_rate,
        "activation_function": "gelu",
        "init_std": model.init_std,
        "add_type_embedding": True,
        "encoder_normalize_before": True,
        "decoder_normalize_before": True,
        "layernorm_embedding": True,
        "patch_layernorm_embedding": True,
        "code_layernorm_embedding": True,
        "normalize_before": True,
        "normformer": True,
        "scale_embedding": False,
        "share_decoder_input_output_embed": True,
        "share_all_embeddings": True,
        "entangle_position_embedding": False,
        "interpolate_position": model.interpolate_position,
        "orig_patch_image_size": model.orig_patch_image_px,
        "encoder_layerdrop": 0.0,
        "decoder_layerdrop": 0.0,
        "use_cache": False,  # the ports' cached generation reads the relative bias of one place only
        "is_encoder_decoder": True,
        "bos_token_id": BOS_ID,
        "pad_token_id": PAD_ID,
        "eos_token_id": EOS_ID,
        "decoder_start_token_id": BOS_ID,
        "forced_eos_token_id": EOS_ID,
        "torch_dtype": "float32",
    }


def check_config_json(config: Mapping[str, Any], model: ModelConfig, vocab: VocabConfig, *, where: str) -> None:
    """Raises ConvertError naming every field of a folder's `config.json` that contradicts the shapes of its weights."""
    ours = {theirs: getattr(model, name) for theirs, name in _FIELDS.items()}
    ours |= {"vocab_size": vocab.size, "resnet_type": _RESNETS.get(model.resnet.blocks)}
    same = {"resnet34": "resnet50"}  # the official table gives both names the same stages
    wrong = [
        f"{name}: found {config[name]}, the weights have {value}"
        for name, value in ours.items()
        if name in config and value is not None and same.get(config[name], config[name]) != value
    ]
    wrong += [
        f"{name}: found {config[name]}, expected {value}: OFA's released models have it so"
        for name, value in {"normformer": True, "entangle_position_embedding": False, "scale_embedding": False}.items()
        if config.get(name, value) != value
    ]
    if wrong:
        raise ConvertError(f"{where}: the config does not fit\n  " + "\n  ".join(wrong))


def generation_json() -> dict[str, Any]:
    """Returns the generation settings of OFA's captioning, the ports' default use: beam 5, at most 16 tokens, no repeated 3-gram."""
    return {
        "bos_token_id": BOS_ID,
        "pad_token_id": PAD_ID,
        "eos_token_id": EOS_ID,
        "decoder_start_token_id": BOS_ID,
        "num_beams": 5,
        "max_length": 16,
        "no_repeat_ngram_size": 3,
        "use_cache": False,
    }


def write_tokenizer(folder: Path, vocab: VocabConfig) -> None:
    """Writes `vocab.json` and `merges.txt` (GPT-2's pieces under this vocabulary's ids), or the SentencePiece model, into `folder`."""
    if vocab.tokenizer != "gpt2_bpe":
        (folder / Path(vocab.path).name).write_bytes(Path(vocab.path).read_bytes())
        return
    pieces = gpt2_bpe.pieces_by_id(vocab)
    names = {token: i for i, token in enumerate(("<s>", "<pad>", "</s>", "<unk>"))}
    names |= {piece: token for token, piece in pieces.items()}
    names |= {f"madeupword{i:04d}": vocab.mask_id - gpt2_bpe.NUM_MADEUP + i for i in range(gpt2_bpe.NUM_MADEUP)}
    names["<mask>"] = vocab.mask_id
    names |= {f"<code_{i}>": vocab.first_code_id + i for i in range(vocab.num_codes)}
    names |= {f"<bin_{i}>": vocab.first_bin_id + i for i in range(vocab.num_bins)}
    ordered = dict(sorted(names.items(), key=lambda item: item[1]))
    (folder / VOCAB_FILE).write_text(json.dumps(ordered, ensure_ascii=False), encoding="utf-8")
    (folder / MERGES_FILE).write_bytes(gpt2_bpe.read_package_file("vocab.bpe"))


def dict_of_vocab_json(path: Path) -> str:
    """Returns the text of fairseq's `dict.txt` that says what a folder's `vocab.json` says.

    Raises ConvertError when a piece of GPT-2 is missing or two have one id.
    """
    try:
        ids: dict[str, int] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConvertError(f"{path}: found no JSON, expected the vocabulary of an HF-style folder: {error}") from error
    gpt2 = gpt2_bpe.gpt2_pieces()
    missing = [piece for piece in gpt2 if piece not in ids]
    if missing:
        raise ConvertError(f"{path}: found no id for {len(missing)} pieces of GPT-2, {missing[0]!r} first, expected all {len(gpt2)}")
    ordered = sorted(gpt2, key=lambda piece: ids[piece])
    if [ids[piece] for piece in ordered] != list(range(4, 4 + len(ordered))):
        raise ConvertError(f"{path}: found ids that are not 4 to {3 + len(ordered)}, each once, expected fairseq's order of GPT-2's pieces")
    lines = [str(gpt2[piece]) for piece in ordered] + [f"madeupword{i:04d}" for i in range(gpt2_bpe.NUM_MADEUP)]
    return "".join(f"{line} 1\n" for line in lines)
