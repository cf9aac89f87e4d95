"""The one schema of a run: frozen dataclasses, no behaviour beyond derived numbers.

A `RunConfig` is built by `configs/*.py: get_config(arg)`, changed by `--config.a.b=value` flags (`config/load`), checked by
`config/check` and written by `config/render`. Units are in the names: `_px` pixels, `_s` seconds, `_len` tokens.
Defaults are OFA's own constants (sources: OFA paper, arXiv 2202.03052, and the official pretraining scripts); a value that a
size, a stage or a laptop changes is a field, never a literal in the code.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from ofa_jax.config.rows import CODE_AREAS, PROMPTED_ROWS, CodeArea, Row

BOS_ID, PAD_ID, EOS_ID, UNK_ID = 0, 1, 2, 3  # fairseq's order, which OFA keeps
# Of red, green and blue, in shares of the highest level (torchvision's and timm's IMAGENET_DEFAULT_MEAN and _STD).
IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OPTIONAL_PARTS = ("pictures", "codes")  # what `ModelConfig.without` may name


@dataclasses.dataclass(frozen=True)
class VocabConfig:
    """One id space: text pieces, then image codes, then location bins. Ids 0..3 are BOS, PAD, EOS, UNK; the last text id is MASK."""

    tokenizer: Literal["gpt2_bpe", "sentencepiece"] = "gpt2_bpe"
    path: str = ""  # or an address. sentencepiece: the .model file; gpt2_bpe: OFA's dict.txt, or empty for GPT-2's own id order
    num_text: int = 50_265  # the four special ids and MASK included
    num_codes: int = 8_192
    num_bins: int = 1_000
    canvas_px: int = 512  # divisor of box coordinates, whatever the picture's size ("max_image_size" of the official code)
    pad_multiple: int = 128  # embedding rows are padded to a multiple of this; padded ids never get probability

    @property
    def mask_id(self) -> int:
        return self.num_text - 1

    @property
    def first_code_id(self) -> int:
        return self.num_text

    @property
    def first_bin_id(self) -> int:
        return self.num_text + self.num_codes

    @property
    def size(self) -> int:
        """Number of ids that mean something."""
        return self.num_text + self.num_codes + self.num_bins

    @property
    def padded_size(self) -> int:
        """Rows of the embedding matrix: `size` rounded up to `pad_multiple`."""
        return -(-self.size // self.pad_multiple) * self.pad_multiple


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """The bottleneck ResNet front: stages 1 to 3 of torchvision's v1.5 network, without stage 4, pooling and classifier."""

    blocks: tuple[int, ...] = (3, 4, 6)
    base_width: int = 64  # width of the stem and of stage 1; doubles with every stage
    expansion: int = 4  # a block's output channels over its width
    strides: tuple[int, ...] = (1, 2, 2)  # of each stage's first block, on its 3x3 convolution
    stem_kernel: int = 7
    stem_stride: int = 2
    stem_pool: bool = True  # 3x3 max pooling with stride 2 after the stem
    norm_eps: float = 1e-5
    norm_momentum: float = 0.1  # PyTorch's meaning: weight of the new statistics
    drop_path_rate: float = 0.0

    @property
    def stride(self) -> int:
        """Pixels per patch: 16 for OFA."""
        total = self.stem_stride * (2 if self.stem_pool else 1)
        for s in self.strides:
            total *= s
        return total

    @property
    def out_channels(self) -> int:
        """Channels of the last stage: 1024 for OFA."""
        return self.base_width * 2 ** (len(self.blocks) - 1) * self.expansion


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """An OFA encoder-decoder. Head scaling, post-attention and in-FFN LayerNorm are always on, as in every released model."""

    width: int
    ffn_width: int
    num_heads: int
    encoder_layers: int
    decoder_layers: int
    resnet: ResNetConfig = ResNetConfig()
    token_bucket_size: int = 256
    image_bucket_size: int = 42  # side of the position grid; patch ids are image_bucket_size * row + column + 1
    max_positions: int = 1024  # reach of the 1-D buckets: no text may be longer
    num_source_positions: int = 1026  # rows of the encoder's text position table; fairseq adds two to its maximal length
    num_target_positions: int = 1026  # rows of the decoder's
    code_image_px: int = 128  # picture side that the decoder's code grid covers
    code_stride: int = 8  # pixels per image code (VQGAN f=8)
    code_filler_id: int = 1024  # image position id of decoder positions past the code grid
    attn_scale_factor: float = 2.0
    layer_norm_eps: float = 1e-5
    init_std: float = 0.02
    interpolate_position: bool = False
    orig_patch_image_px: int = 256  # only used when interpolating
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    encoder_drop_path_rate: float = 0.1
    decoder_drop_path_rate: float = 0.1
    adapter_width: int = 0  # inner width of the adapter behind each feed-forward ("adapter" of the official light fine-tuning); 0: none
    prompt_lens: tuple[int, int] = (0, 0)  # learned keys and values before those of self attention: encoder's and decoder's; 0: none
    prompt_dropout: float = 0.2
    lora_rank: int = 0  # of the update beside the query and value projections of every attention (arXiv 2106.09685); 0: none
    lora_alpha: float = 16.0  # over the rank: what the update counts
    image_norm: Literal["batch", "frozen"] = "batch"  # batch statistics in training, or running ones, never written
    norm_group: int = 0  # consecutive images of a stream that share statistics; 0: the whole stream over all devices
    layers: Literal["scan", "unroll"] = "unroll"
    remat: Literal["none", "dots", "full"] = "none"
    attention: Literal["reference", "cudnn", "pallas"] = "reference"  # of training; cudnn: on NVIDIA GPUs, pallas: on TPUs
    dropout_bits: Literal["hash", "threefry"] = "hash"  # hash: a few instructions a number, and masks are made again, not kept
    convolution: Literal["xla", "matmul"] = "xla"  # matmul: sums of shifted products, faster backward on CPUs
    # What pixels are normalised by, in training and wherever the model is asked: mean and deviation 0.5, or ImageNet's by channel.
    pixel_scale: Literal["half", "imagenet"] = "half"
    # Parts that the model does not have (`OPTIONAL_PARTS`): pictures, what reads them (the ResNet and its place in the encoder); codes,
    # what writes them (places and norms of image codes in the decoder).
    without: tuple[str, ...] = ()

    @property
    def reads_pictures(self) -> bool:
        """Whether pictures may be among the inputs."""
        return "pictures" not in self.without

    @property
    def writes_codes(self) -> bool:
        """Whether targets may be image codes."""
        return "codes" not in self.without

    @property
    def lora(self) -> tuple[int, float]:
        """Rank and scale of the low-rank updates."""
        return self.lora_rank, self.lora_alpha / max(self.lora_rank, 1)

    @property
    def head_width(self) -> int:
        return self.width // self.num_heads

    @property
    def code_grid(self) -> int:
        return self.code_image_px // self.code_stride

    @property
    def num_image_positions(self) -> int:
        return self.image_bucket_size**2 + 1

    @property
    def num_token_buckets(self) -> int:
        return 2 * self.token_bucket_size - 1

    @property
    def num_image_buckets(self) -> int:
        return (2 * self.image_bucket_size - 1) ** 2 + 3


@dataclasses.dataclass(frozen=True)
class VQGANConfig:
    """A VQGAN: pictures to a grid of codes and back (Esser et al. 2021, arXiv 2012.09841).

    The defaults are the published f=8 model with a Gumbel quantiser and 8,192 codes of taming-transformers, whose codes OFA uses. There
    attention is placed by the side of a nominal picture; here by level, so that it stays where it is at any picture size.
    """

    width: int = 128  # channels of level 0
    multiples: tuple[int, ...] = (1, 1, 2, 4)  # channels of each level over `width`; a level has half the side of the one before
    num_blocks: int = 2  # residual blocks of a level of the encoder; the decoder has one more
    attention_levels: tuple[int, ...] = (3,)  # levels whose blocks are followed by attention
    latent_width: int = 256  # channels that the encoder gives and the decoder takes
    num_codes: int = 8_192
    code_width: int = 256  # of an entry of the codebook
    quantizer: Literal["gumbel", "nearest"] = "gumbel"
    norm_groups: int = 32
    norm_over: Literal["picture", "pixel"] = "picture"  # a group's statistics: of all pixels (taming's), or of each pixel alone
    norm_eps: float = 1e-6
    convolution: Literal["xla", "matmul"] = "xla"

    @property
    def stride(self) -> int:
        """Pixels a code covers in each direction: 8 for OFA's."""
        return 2 ** (len(self.multiples) - 1)

    def level_width(self, level: int) -> int:
        return self.width * self.multiples[level]


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """One line of a mixture: rows of kind `row` from `dataset`, drawn with `weight` relative to its block's other lines."""

    dataset: str  # a folder below `data.dir`
    row: Row
    weight: float = 1.0
    split: str = "train"
    later_weights: tuple[float, ...] = ()  # its weight from each of `DataConfig.stage_steps` on; empty: the same all the time

    @property
    def code_area(self) -> CodeArea | None:
        """Of what the image codes are that its rows need, which may lie in shards of their own; None: they need none."""
        return CODE_AREAS.get(self.row)


@dataclasses.dataclass(frozen=True)
class LengthClass:
    """Rows of a block at a shape of their own, for records whose sequences fit it and no class before it.

    `source_lens` and `target_lens` are tokens of the first, second, ... sequence of a pair (a caption's captioning and matching), because a
    row's tasks differ in length more than its records do; one number serves all.
    """

    rows: int
    source_lens: tuple[int, ...]
    target_lens: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class BlockConfig:
    """One row block of the global batch: `rows` images (or texts), each with `pairs_per_image` pairs, at one static shape or a few.

    With `classes`, shorter first, each has its own part of `rows`, and records go to the first that holds their sequences; the last takes
    the rest, cut at a word. None is longer than `source_len` and `target_len`.
    """

    name: str
    stream: Literal["pairs", "images", "text", "pictures"]  # pictures: no sequences, for a VQGAN
    rows: int
    source_len: int
    target_len: int
    sources: tuple[SourceConfig, ...]
    image_px: int = 0  # side of the square network input; 0 for text
    pairs_per_image: int = 1  # pairs drawn from one image; each pair of stream `pairs` makes two sequences
    num_patches: int = 0  # patches sampled per sequence; 0 keeps all
    augment: Literal["resize", "random_resize_crop", "scale_jitter", "random_crop", "imagenet"] = "resize"
    classes: tuple[LengthClass, ...] = ()  # none: every row has source_len x target_len
    rand_augment: bool = False  # RandAugment after `augment`, for rows of captions and questions alone

    def lens_of(self, place: int) -> tuple[int, int]:
        """Returns (source, target) tokens of sequence `place` of a pair."""
        del place
        return self.source_len, self.target_len

    @property
    def prompt_len(self) -> int:
        """Places of the decoder for the source that it reads between BOS and the target; 0 where rows have no prompt."""
        return self.source_len - 1 if any(source.row in PROMPTED_ROWS for source in self.sources) else 0

    @property
    def decoder_len(self) -> int:
        """Tokens that the decoder reads; those of the target are its last, wherever a prompt ends, and the only ones with logits."""
        return self.prompt_len + self.target_len


@dataclasses.dataclass(frozen=True)
class RowBlock(BlockConfig):
    """A block, or one length class of it, as it is drawn and run. Not written in configs: `DataConfig.row_blocks` makes them."""

    source_lens: tuple[int, ...] = ()  # of the class; empty: a block without classes
    target_lens: tuple[int, ...] = ()
    place: int = 0  # of the class in `all_classes`
    all_classes: tuple[LengthClass, ...] = ()  # of the block

    def lens_of(self, place: int) -> tuple[int, int]:
        """Returns (source, target) tokens of sequence `place` of a pair."""
        if not self.source_lens:
            return self.source_len, self.target_len
        return self.source_lens[min(place, len(self.source_lens) - 1)], self.target_lens[min(place, len(self.target_lens) - 1)]

    @property
    def num_places(self) -> int:
        """Sequences of a pair that have lengths of their own; 1 where all have the same."""
        return max(len(self.source_lens), len(self.target_lens), 1)

    def num_positions(self, sequences: int) -> int:
        """Returns how many source and target positions the model runs for so many sequences, padding included, patches not."""
        return sequences // self.num_places * sum(sum(self.lens_of(place)) + self.prompt_len for place in range(self.num_places))


@dataclasses.dataclass(frozen=True)
class DataConfig:
    dir: str = "data"  # a local folder, or an address (gs://, s3://)
    blocks: tuple[BlockConfig, ...] = ()
    num_workers: int = 0  # worker processes; 0 reads in threads of the training process
    prefetch: int = 4  # batches made ahead
    max_reject_fraction: float = 0.01  # of the rows drawn so far, once `reject_grace` rows were drawn
    reject_grace: int = 1_000
    max_epochs: float = 1_000.0  # a source whose records the run draws more often is warned of, at the start and when it happens; 0: none
    write_digests: bool = False  # a digest of every batch in `<workdir>/batches_<host>.jsonl`: proof of the order of the data
    stage_steps: tuple[int, ...] = ()  # batches at which the second, third, ... stage of the mixture begins (`SourceConfig.later_weights`)
    question_objects: int = 0  # a detector's labels behind each question of `answer` rows, evaluation's too; official: 30; 0: none

    @property
    def row_blocks(self) -> tuple[RowBlock, ...]:
        """The parts of a global batch in order: the blocks, one with length classes as `<name>_0`, `<name>_1`, ..."""
        parts = []
        for block in self.blocks:
            shared = {field.name: getattr(block, field.name) for field in dataclasses.fields(BlockConfig)}
            if not block.classes:
                parts.append(RowBlock(**shared))
            for place, part in enumerate(block.classes):
                own = {
                    "name": f"{block.name}_{place}",
                    "rows": part.rows,
                    "source_len": max(part.source_lens),
                    "target_len": max(part.target_lens),
                    "classes": (),
                }
                parts.append(
                    RowBlock(
                        **(shared | own),
                        source_lens=part.source_lens,
                        target_lens=part.target_lens,
                        place=place,
                        all_classes=block.classes,
                    )
                )
        return tuple(parts)


@dataclasses.dataclass(frozen=True)
class LossConfig:
    label_smoothing: float = 0.0
    logit_chunk: int = 0  # target positions per chunk of the output layer; 0: all at once
    constraint_range: tuple[int, ...] = ()  # (first, end): targets are these ids, end not included, or special ids; empty: any
    drop_worst: tuple[float, int] = (0.0, 0)  # share of the target tokens with the largest losses left out, after how many updates
    drop_best: tuple[float, int] = (0.0, 0)  # the same for the smallest losses of what is left
    encouraging_log_end: float = 0.0  # probability from which the encouraging bonus is linear (official 0.75; 1: nowhere); 0: no bonus
    r_drop_alpha: float = 0.0  # weight of the divergence between two runs of every sequence under dropout; 0: one run
    answers: str = ""  # closed set whose trie masks the logits: a file of one label a line, or task (the task's own); empty: none
    decoder_noise: float = 0.0  # share of the tokens that the decoder reads which are random ones


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with decay on all parameters, linear warm-up and linear decay, global-norm clipping."""

    learning_rate: float = 1e-4
    end_learning_rate: float = 0.0
    warmup_fraction: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01
    clip_norm: float = 5.0
    # Parameters that stay as they are: parts of the model (resnet), paths and patterns (*/layers/ffn, **/*norm).
    frozen: tuple[str, ...] = ()
    trained: tuple[str, ...] = ()  # those that learn alone, named alike; none named: all that are not frozen
    accumulate: int = 1  # micro-batches that a global batch is run in, one after another, for want of memory
    ema_decay: float = 0.0  # 0: no average of the weights is kept; evaluation uses the average where there is one


@dataclasses.dataclass(frozen=True)
class GuardConfig:
    """When a step is bad, and what becomes of a run that meets many: bad steps change nothing (`train/guard`).

    A loss or gradient that is not finite always is. One that is far above its usual level is too: by the factor and by so many standard
    deviations of its logarithm, whichever is more.
    """

    loss_factor: float = 3.0  # of the loss over its usual level; 0: no limit
    norm_factor: float = 10.0  # of the gradient's norm before clipping; 0: no limit
    deviations: float = 6.0
    window: int = 200  # updates that the usual level looks back on; it judges nothing before it has seen as many
    max_in_a_row: int = 10  # bad steps, at which the run goes back to a checkpoint or ends
    rewinds: int = 0  # how often it may go back


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the device mesh; -1 takes what is left."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    every_steps: int = 1_000
    every_s: float = 600.0  # also by time; 0: by steps only
    keep: int = 3  # the newest stay
    keep_every: int = 0  # and those of every n-th step, for ever; 0: none
    keep_best: int = 0  # and so many of the best by `best_metric`, of those whose state was evaluated; 0: none
    best_metric: str = ""  # a number of the evaluation during training, such as eval/cider/coco
    lowest_is_best: bool = False
    deadline_s: float = 1_200.0  # a save that takes longer ends the run
    content: Literal["all", "trained"] = "all"  # trained: what stays as it is in init.checkpoint is read from there again


@dataclasses.dataclass(frozen=True)
class InitConfig:
    """Where a new run takes its first parameters from; a run that resumes has its own."""

    checkpoint: str = ""  # another run's folder, its checkpoints folder or one checkpoint; empty: all are drawn
    parts: tuple[str, ...] = ()  # the model's parts to take (embedding, resnet, encoder, decoder); none named: all of them


@dataclasses.dataclass(frozen=True)
class EvalSetConfig:
    """One row of the table: `limit` examples of `row` of `dataset`/`split`, evaluated as `task`."""

    name: str  # key in eval.json: "dataset/split" or "task/split"
    task: str
    dataset: str
    split: str
    limit: int = 0  # 0: all


@dataclasses.dataclass(frozen=True)
class PictureJudgesConfig:
    """By what pictures are judged that a model makes of texts (`eval/painting`); nothing named: by their codes alone.

    Networks are FILE.py:function of pictures uint8 [n, h, w, 3], or of texts (`eval/networks`).
    """

    captioner: str = ""  # a run of ours, which captions them: CIDEr against the captions of their records
    features: str = ""  # network of FID
    real: str = ""  # of FID: statistics of real pictures (.npz of mu and sigma); empty: those of the set's own pictures
    probabilities: str = ""  # network of the Inception score
    images: str = ""  # networks of CLIP's score, which belong together
    texts: str = ""


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    sets: tuple[EvalSetConfig, ...] = ()
    batch_rows: int = 64
    source_len: int = 128
    target_len: int = 64
    image_px: int = 384
    bootstrap_samples: int = 1_000
    report_examples: int = 12
    # Ways to decode, written as `launch/eval.py --decode` has them, of which a set takes the first that is for its task; none: greedily.
    decode: tuple[str, ...] = ()
    every_steps: int = 0  # evaluation during training, of all sets; 0: none
    loss_every_steps: int = 0  # loss of every task on held-out records (the splits named validation) during training; 0: none
    pictures: PictureJudgesConfig = PictureJudgesConfig()


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """Self-critical training (`train/reward`): as many hypotheses a row as its block's `pairs_per_image`."""

    # Or FILE.py:function of (instruction, picture, texts, references), which gives one number a text. Of paintings it is one of
    # (instruction, None, pictures, captions), the pictures uint8 [n, px, px, 3], which gives one number a picture.
    reward: str = "cider"
    frequencies: str = ""  # of cider: the file of document frequencies that `launch/prepare.py frequencies` writes
    method: Literal["beam", "sample"] = "beam"
    max_len: int = 16  # tokens before EOS; of paintings all codes of the model's grid, whatever this says
    no_repeat_ngram: int = 3
    top_k: int = 0  # of sample


@dataclasses.dataclass(frozen=True)
class MonitorConfig:
    """What a run shows of itself beside its metrics; nothing of it changes what is learned."""

    reference: str = ""  # a band of losses to compare with (launch/reference.py); empty: none
    trace_step: int = 0  # after which the profiler records a few steps; 0: only when it is asked (SIGUSR1, a file trace_please)
    wandb: str = ""  # project of Weights & Biases that gets the metrics too; needs `pip install wandb`; empty: none


@dataclasses.dataclass(frozen=True)
class VQGANLossConfig:
    """What a reconstruction costs, and when and how much the patch discriminator has a say. Defaults: those of taming-transformers' loss,
    Gumbel quantiser and example for one's own data (`configs/custom_vqgan.yaml`); temperature and revival are ours."""

    pixel_weight: float = 1.0  # of the mean absolute error
    perceptual: str = ""  # LPIPS weights (VGG-16 and its linear layers, a state dict); empty: differences of edges at three scales
    perceptual_weight: float = 1.0
    quantizer_weight: float = 5e-4  # Gumbel: of the divergence from equally used codes, in nats a cell; nearest: of commitment and codebook
    commitment: float = 0.25  # nearest: of the encoder's pull to its entry, beside the entry's pull to the encoder
    quantizer_start_fraction: float = 0.0  # nearest: of the updates; until then the decoder sees latents
    temperature: tuple[float, float] = (1.0, 1.0)  # Gumbel softmax: at the first update, and from three quarters of the run on
    discriminator_width: int = 64
    discriminator_layers: int = 3  # convolutions of stride 2
    discriminator_start: int = 10_000  # updates before the discriminator has a say; no later than `steps` or it never has
    discriminator_weight: float = 0.8  # times the adaptive weight, the quotient of the two gradients at the last layer
    revive_every: int = 0  # updates between revivals of codes that nothing used since the last; 0: none


@dataclasses.dataclass(frozen=True)
class VQGANEvalConfig:
    """Held-out pictures that the run reconstructs every `every_steps` updates and at its end: their PSNR, the codes used, a few drawn."""

    dataset: str = ""  # empty: none
    split: str = "validation"
    limit: int = 512
    image_px: int = 256
    batch_rows: int = 32
    every_steps: int = 0  # 0: at the end only
    drawn: int = 8


@dataclasses.dataclass(frozen=True)
class VQGANRunConfig:
    """A run that trains a VQGAN: what `RunConfig` is for OFA, by the same loop."""

    name: str
    model: VQGANConfig = VQGANConfig()
    data: DataConfig = DataConfig()
    loss: VQGANLossConfig = VQGANLossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    guard: GuardConfig = GuardConfig(loss_factor=0.0, norm_factor=0.0)  # its terms begin one after another, and may be negative
    mesh: MeshConfig = MeshConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    init: InitConfig = InitConfig()
    eval: VQGANEvalConfig = VQGANEvalConfig()
    monitor: MonitorConfig = MonitorConfig()
    objective: Literal["vqgan"] = "vqgan"
    workdir: str = "runs/{name}"
    steps: int = 300_000
    seed: int = 1
    precision: Literal["f32", "bf16", "f64"] = "f32"
    log_every: int = 50
    hang_s: float = 900.0  # that a step, or waiting for its batch, may take before the run ends as a hang; 0: no limit


@dataclasses.dataclass(frozen=True)
class RunConfig:
    name: str
    model: ModelConfig
    vocab: VocabConfig = VocabConfig()
    data: DataConfig = DataConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    guard: GuardConfig = GuardConfig()
    mesh: MeshConfig = MeshConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    init: InitConfig = InitConfig()
    eval: EvalConfig = EvalConfig()
    monitor: MonitorConfig = MonitorConfig()
    reward: tuple[RewardConfig, ...] = ()  # one: the run learns from what it writes itself; none: from the data's targets
    objective: Literal["ofa", "picture_words"] = "ofa"  # what is trained: the whole model, or its image front alone to name what it sees
    workdir: str = "runs/{name}"
    steps: int = 300_000
    seed: int = 1
    precision: Literal["f32", "bf16", "f64"] = "f32"
    log_every: int = 50
    hang_s: float = 900.0  # that a step, or waiting for its batch, may take before the run ends as a hang; 0: no limit


AnyRun = RunConfig | VQGANRunConfig
