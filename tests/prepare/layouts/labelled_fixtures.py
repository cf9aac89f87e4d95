"""Writes tiny data sets of labelled texts as their makers publish them: names of files and columns are theirs."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.io

from tests.prepare.layouts.annotated_fixtures import write_picture
from tests.prepare.layouts.fixtures.streamed import jpeg, write_lines, write_tar, write_tsv

Rows = Sequence[Sequence[str]]
MSR_HEADER = ("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String")
_PARSES = ("( x )",) * 4


def write_glue(folder: Path) -> None:
    """The folders of the seven tasks, two rows in train and one or two in each other split; tests without labels are there too."""

    def write(task: str, header: Sequence[str], **splits: Rows) -> None:
        (folder / task).mkdir(parents=True)
        for split, rows in splits.items():
            write_tsv(folder / task / f"{split}.tsv", [header, *rows] if header else rows)
        write_tsv(folder / task / "test.tsv", [("index", "sentence"), ("0", "without a label")])

    write(
        "CoLA", (),
        train=[("gj04", "1", "", "Our friends won't buy this."), ("gj04", "0", "*", "They drank the pub.")],
        dev=[("gj04", "0", "*", 'They "drank the pub.')],
    )  # fmt: skip
    write(
        "SST-2", ("sentence", "label"),
        train=[("hide new secretions ", "0"), ("a gorgeous film ", "1")],
        dev=[("a charming film", "1")],
    )  # fmt: skip
    write(
        "MRPC", ("\ufeffQuality", *MSR_HEADER[1:]),
        train=[("1", "702876", "702977", "Amrozi accused him .", 'He " accused " him .'), ("0", "1", "2", "A .", "B .")],
        dev=[("0", "3", "4", "One .", "Two .")],
    )  # fmt: skip
    write(
        "QQP", ("id", "qid1", "qid2", "question1", "question2", "is_duplicate"),
        train=[("1", "2", "3", "How old is it?", "What is its age?", "1"), ("2", "4", "5", "Who?", "Why?", "0")],
        dev=[("3", "6", "7", "What is it?", "Where is it?", "0")],
    )  # fmt: skip
    about = ("index", "promptID", "pairID", "genre", "sentence1_binary_parse", "sentence2_binary_parse", "sentence1_parse",
             "sentence2_parse", "sentence1", "sentence2")  # fmt: skip
    row = ("0", "31193", "31193n", "government", *_PARSES)
    write(
        "MNLI", (*about, "label1", "gold_label"),
        train=[(*row, "You can go.", "You may leave.", *["entailment"] * 2), (*row, "A dog.", "A pet dog.", *["neutral"] * 2)],
    )  # fmt: skip
    dev = [(*about, *(f"label{number}" for number in range(1, 6)), "gold_label")]
    write_tsv(folder / "MNLI" / "dev_matched.tsv", [*dev, (*row, "It is.", "It may be.", *["neutral"] * 6)])
    others = ("contradiction", "neutral", "contradiction", "contradiction", "contradiction", "contradiction")
    write_tsv(folder / "MNLI" / "dev_mismatched.tsv", [*dev, (*row, "A man eats.", "He sleeps.", *others)])
    write(
        "QNLI", ("index", "question", "sentence", "label"),
        train=[("0", "When did it end?", "It ended in 1806.", "entailment"), ("1", "Who?", "It snowed.", "not_entailment")],
        dev=[("0", "Who won?", "It rained.", "not_entailment")],
    )  # fmt: skip
    write(
        "RTE", ("index", "sentence1", "sentence2", "label"),
        train=[("0", "Oil fell.", "Oil rose.", "not_entailment"), ("1", "It rains.", "It is wet.", "entailment")],
        dev=[("0", "Cats are pets.", "A cat is a pet.", "entailment")],
    )  # fmt: skip


def write_msr(folder: Path) -> None:
    """MRPC as Microsoft publishes it, lines with the ends of Windows, with the ids that GLUE holds out."""
    rows = [
        MSR_HEADER,
        ("1", "702876", "702977", "Amrozi accused him .", 'He " accused " him .'),
        ("0", "3", "4", "One .", "Two ."),
        ("1", "5", "6", "Three .", "3 ."),
    ]
    text = "\ufeff" + "".join("\t".join(row) + "\r\n" for row in rows)
    (folder / "msr_paraphrase_train.txt").write_bytes(text.encode())
    (folder / "msr_paraphrase_test.txt").write_bytes(text.encode())
    write_tsv(folder / "dev_ids.tsv", [("3", "4")])


def write_snli_ve(folder: Path, *, split: str = "train") -> None:
    """Two premises of picture 36979, the first with two hypotheses, and one of picture 9; one more whose people did not agree."""
    for number in ("36979", "9"):
        write_picture(folder / "flickr30k-images" / f"{number}.jpg", seed=int(number))
    rows = [
        ("36979", "A man sleeps.", "He is awake.", "contradiction"),
        ("9", "Two dogs run.", "Animals run.", "entailment"),
        ("36979", "A man in bed.", "It is night.", "neutral"),
        ("36979", "A man sleeps.", "A person sleeps. ", "entailment"),
        ("9", "Two dogs run.", "They are cats.", "-"),
    ]
    lines = [
        {
            "annotator_labels": [label], "captionID": f"{picture}.jpg#0", "gold_label": label, "pairID": f"{picture}.jpg#0r1{label[0]}",
            "sentence1": premise, "sentence1_binary_parse": "( x )", "sentence2": hypothesis, "Flickr30K_ID": picture,
        }
        for picture, premise, hypothesis, label in rows
    ]  # fmt: skip
    write_lines(folder / f"snli_ve_{split}.jsonl", lines)


def write_gigaword(folder: Path, *, lines: int = 5) -> None:
    """Articles with their headlines, as many of train and one of dev and test each."""
    for split, count in (("train", lines), ("dev", 1), ("test", 1)):
        for kind, words in (("src", "the long article {} , of unk #.# words ."), ("tgt", "headline {}")):
            text = "".join(words.format(f"{split} {number}") + "\n" for number in range(1, count + 1))
            (folder / f"{split}.{kind}.txt").write_text(text, encoding="utf-8")


def write_fashion_mnist(folder: Path) -> None:
    """Seven training pictures of 28 px and three of the test, all of one grey value a picture; labels go round."""
    folder.mkdir()
    for name, count in (("train", 7), ("t10k", 3)):
        pictures = np.repeat(np.arange(count, dtype=np.uint8) * 30, 28 * 28)
        labels = np.arange(count, dtype=np.uint8) % 10
        for kind, shape, values in (("images-idx3", (count, 28, 28), pictures), ("labels-idx1", (count,), labels)):
            head = bytes((0, 0, 8, len(shape))) + b"".join(size.to_bytes(4, "big") for size in shape)
            (folder / f"{name}-{kind}-ubyte.gz").write_bytes(gzip.compress(head + values.tobytes()))


def write_imagenet(folder: Path, *, form: str) -> None:
    """Three classes with a picture each, one of them in a tar, and three pictures of validation.

    form: "kit" (the development kit's numbers, whose order is another), "caffe" (val.txt), "folders" (a folder a class).
    """
    words = {"n01440764": "tench, Tinca tinca", "n02012849": "crane", "n02102318": "cocker spaniel, English cocker spaniel, cocker"}
    folder.mkdir(parents=True)
    (folder / "synset_words.txt").write_text("".join(f"{synset} {said}\n" for synset, said in words.items()))
    for seed, synset in enumerate(words):
        if seed == 1:
            write_tar(folder / "train" / f"{synset}.tar", [(f"{synset}_3.JPEG", jpeg(seed))])
        else:
            write_picture(folder / "train" / synset / f"{synset}_3.JPEG", seed=seed)
    shown = ("n02102318", "n01440764", "n01440764")
    for number, synset in enumerate(shown, 1):
        place = folder / "val" / synset if form == "folders" else folder / "val"
        write_picture(place / f"ILSVRC2012_val_{number:08d}.JPEG", seed=10 + number)
    if form == "kit":
        kit = {1: "n02102318", 2: "n01440764", 3: "n02012849", 1001: "n00001740"}  # the last is no class, but above some
        rows = [(number, synset, words.get(synset, "entity")) for number, synset in kit.items()]
        table = np.array(rows, dtype=[("ILSVRC2012_ID", object), ("WNID", object), ("words", object)])
        scipy.io.savemat(folder / "meta.mat", {"synsets": table})
        (folder / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n2\n2\n")
    elif form == "caffe":
        places = [f"ILSVRC2012_val_{number:08d}.JPEG {list(words).index(synset)}\n" for number, synset in enumerate(shown, 1)]
        (folder / "val.txt").write_text("".join(places))
