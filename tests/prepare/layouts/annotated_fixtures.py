"""Tiny data sets in the layouts of the public ones: the official names of files and fields, and real pictures."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

from ofa_jax.data.records import ImageRecord, RecordError
from ofa_jax.prepare.layouts.base import Layout

SMALL_BOX, WHOLE_BOX = [4, 6, 10, 12], [0, 0, 64, 48]  # x, y, width, height


def jpeg(width: int = 64, height: int = 48, *, seed: int = 0) -> bytes:
    """A JPEG file of smooth colours, different for every seed."""
    red, green = np.meshgrid(np.linspace(0, 255, width), np.linspace(255, 0, height))
    pixels = np.stack([red, green, np.full_like(red, (seed * 37) % 256)], axis=-1)
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels.astype(np.uint8)), quality=95)


def read_all(layout: Layout, gathered: Path) -> tuple[list[ImageRecord], list[RecordError], list[str]]:
    """Gathers into a folder and reads every input, as a worker does: from a pickle. Returns records, errors and lines of progress."""
    gathered.mkdir()
    lines: list[str] = []
    layout.gather(gathered, lines.append)
    worker: Layout = pickle.loads(pickle.dumps(layout))
    found = [one for item in worker.inputs(gathered) for one in worker.read(item)]
    records = [one for one in found if isinstance(one, ImageRecord)]
    return records, [one for one in found if isinstance(one, RecordError)], lines


def write_picture(path: Path, width: int = 64, height: int = 48, *, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(jpeg(width, height, seed=seed))


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def edit_json(path: Path, change: Callable[[Any], None]) -> None:
    """Lets `change` alter the content of a JSON file in place."""
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    write_json(path, content)


def write_coco(folder: Path, *, year: int = 2014) -> None:
    """Pictures 25 and 9 of train, 30 of val, with captions, objects and, for 2014, Karpathy's file (30 is "restval", 31 "val")."""
    name = "COCO_{split}2014_{id:012d}.jpg" if year == 2014 else "{id:012d}.jpg"
    categories = [{"id": 1, "name": "person", "supercategory": "person"}, {"id": 44, "name": "dining table", "supercategory": "furniture"}]
    info = {"year": year, "version": "1.0", "description": "", "contributor": "", "url": "", "date_created": "2014/09/01"}
    for split, pictures in (("train", (25, 9)), ("val", (30, 31))):
        images = [
            {"id": id, "file_name": name.format(split=split, id=id), "width": 64, "height": 48, "license": 1, "coco_url": ""}
            for id in pictures
        ]
        for image in images:
            write_picture(folder / f"{split}{year}" / image["file_name"], seed=image["id"])
        captions = [
            {"image_id": pictures[0], "id": 48, "caption": "A Person at a dining table, no persons."},
            {"image_id": pictures[1], "id": 49, "caption": "A small\nred bird.\n"},
            {"image_id": pictures[0], "id": 50, "caption": "Someone eats."},
        ]
        annotations = [
            _object(1, pictures[0], 44, SMALL_BOX),
            _object(2, pictures[1], 1, [60, 40, 4.5, 8]),
            _object(3, pictures[0], 1, [1.5, 2, 3, 4]),
            _object(4, pictures[0], 1, WHOLE_BOX, crowd=1),
        ]
        write_json(
            folder / "annotations" / f"captions_{split}{year}.json",
            {"info": info, "images": images, "licenses": [], "annotations": captions},
        )
        write_json(
            folder / "annotations" / f"instances_{split}{year}.json",
            {"info": info, "licenses": [], "images": images, "annotations": annotations, "categories": categories},
        )
    if year == 2014:
        described = {9: ("train", "train"), 25: ("train", "train"), 30: ("val", "restval"), 31: ("val", "val")}
        write_json(
            folder / "dataset_coco.json",
            {
                "images": [
                    {
                        "filepath": f"{official}2014",
                        "sentids": [id],
                        "filename": name.format(split=official, id=id),
                        "imgid": id - 9,
                        "split": split,
                        "sentences": [{"tokens": ["picture"], "raw": f"A person in picture {id}.", "imgid": id - 9, "sentid": id}],
                        "cocoid": id,
                    }
                    for id, (official, split) in described.items()
                ],
                "dataset": "coco",
            },
        )


def _object(id: int, image: int, category: int, box: list[float], *, crowd: int = 0) -> dict[str, Any]:
    outline: Any = {"counts": [1, 2], "size": [48, 64]} if crowd else [[0.5, 1.5, 2.5, 3.5, 4.5, 5.5]]
    return {
        "segmentation": outline,
        "area": box[2] * box[3],
        "iscrowd": crowd,
        "image_id": image,
        "bbox": box,
        "category_id": category,
        "id": id,
    }


def write_visual_genome(folder: Path) -> None:
    """Pictures 2 (in VG_100K) and 1 (in VG_100K_2), 200 x 180, each with a large and a small region."""
    site = "https://cs.stanford.edu/people/rak248"
    pictures = {2: "VG_100K/2.jpg", 1: "VG_100K_2/1.jpg"}
    for id, address in pictures.items():
        write_picture(folder / address, 200, 180, seed=id)
    write_json(
        folder / "image_data.json",
        [
            {"image_id": id, "url": f"{site}/{address}", "width": 200, "height": 180, "coco_id": None, "flickr_id": None}
            for id, address in pictures.items()
        ],
    )

    def region(id: int, image: int, x: int, y: int, width: int, height: int, phrase: str) -> dict[str, Any]:
        return {"region_id": id, "width": width, "height": height, "image_id": image, "phrase": phrase, "y": y, "x": x}

    write_json(
        folder / "region_descriptions.json",
        [
            {"id": 2, "regions": [region(21, 2, 0, 0, 200, 180, "the whole of two"), region(22, 2, 5, 6, 20, 10, "a  clock")]},
            {
                "id": 1,
                "regions": [
                    region(11, 1, 10, 20, 128, 128, "exactly 16,384"),
                    region(12, 1, 30, 20, 129, 130, "a wall"),
                    region(13, 1, 40, 10, 100, 165, "a door"),
                ],
            },
        ],
    )
    write_json(
        folder / "question_answers.json",
        [
            {"id": 2, "qas": [_qa(202, 2, "How many clocks are there?", "Two."), _qa(201, 2, "Is it green?", "Yes")]},
            {"id": 1, "qas": [_qa(101, 1, "What color is the wall?", "Light Yellow.")]},
        ],
    )

    def thing(id: int, names: list[str], x: int, y: int, w: int, h: int) -> dict[str, Any]:
        return {"synsets": [], "h": h, "object_id": id, "merged_object_ids": [], "names": names, "w": w, "y": y, "x": x}

    write_json(
        folder / "objects.json",
        [
            {"image_id": 2, "objects": [thing(1, ["clock", "watch"], 5, 6, 20, 10)], "image_url": f"{site}/VG_100K/2.jpg"},
            {"image_id": 1, "objects": [thing(2, ["wall"], 0, 0, 200, 100)], "image_url": f"{site}/VG_100K_2/1.jpg"},
        ],
    )


def _qa(id: int, image: int, question: str, answer: str) -> dict[str, Any]:
    return {"a_objects": [], "question": question, "image_id": image, "qa_id": id, "answer": answer, "q_objects": []}


def write_vqa_v2(folder: Path, *, split: str = "train") -> None:
    """Questions 25001 and 25000 of picture 25, 9000 of picture 9, whose answers are "2", "yes" and "yes"."""
    for id in (25, 9):
        write_picture(folder / f"{split}2014" / f"COCO_{split}2014_{id:012d}.jpg", seed=id)
    about = {"info": {}, "data_type": "mscoco", "data_subtype": f"{split}2014", "license": {}}
    questions = [
        {"image_id": 25, "question": "How many birds?", "question_id": 25001},
        {"image_id": 9, "question": "Is it a bird?", "question_id": 9000},
        {"image_id": 25, "question": "Is it red?", "question_id": 25000},
    ]

    def annotation(id: int, image: int, kind: str, common: str, people: list[str]) -> dict[str, Any]:
        answers = [{"answer": answer, "answer_confidence": "yes", "answer_id": number} for number, answer in enumerate(people, 1)]
        return {
            "question_type": kind,
            "multiple_choice_answer": common,
            "answers": answers,
            "image_id": image,
            "answer_type": "other",
            "question_id": id,
        }

    write_json(folder / f"v2_OpenEnded_mscoco_{split}2014_questions.json", {**about, "task_type": "Open-Ended", "questions": questions})
    write_json(
        folder / f"v2_mscoco_{split}2014_annotations.json",
        {
            **about,
            "annotations": [
                annotation(9000, 9, "is it a", "yes", ["yes"] * 9 + ["no"]),
                annotation(25000, 25, "is it", "yes", ["no", "yes", "maybe", "red", "yes", "no?", "i", "do", "not", "know"]),
                annotation(25001, 25, "how many", "2", ["3", "2", "2", "2", "3", "4", "5", "6", "7", "8"]),
            ],
        },
    )


def write_gqa(folder: Path, *, split: str = "train") -> None:
    """Questions of the pictures 2370799, 15 and n5."""
    for number, id in enumerate(("2370799", "15", "n5")):
        write_picture(folder / "images" / f"{id}.jpg", seed=number)

    def question(image: str, text: str, answer: str, structural: str, detailed: str) -> dict[str, Any]:
        return {
            "semantic": [],
            "entailed": [],
            "equivalent": [],
            "question": text,
            "imageId": image,
            "isBalanced": True,
            "groups": {"global": None, "local": "10q-x"},
            "answer": answer,
            "semanticStr": "",
            "annotations": {"answer": {}, "question": {}, "fullAnswer": {}},
            "types": {"detailed": detailed, "semantic": "attr", "structural": structural},
            "fullAnswer": f"It is {answer}.",
        }

    write_json(
        folder / f"{split}_balanced_questions.json",
        {
            "02930152": question("2370799", "Is the sky dark?", "yes", "verify", "verifyAttr"),
            "201307251": question("n5", "What color is it?", "red", "query", "color"),
            "07333408": question("15", "Which side is it on?", "left", "query", "relS"),
            "07333409": question("2370799", "What is it made of?", "wood", "query", "material"),
        },
    )


def write_refcoco(folder: Path, *, subset: str = "refcoco", split_by: str = "unc") -> None:
    """References 0 and 1 (train) of picture 581857 and 2 (train) of picture 72; 3 (val)."""
    names = {id: f"COCO_train2014_{id:012d}.jpg" for id in (581857, 72, 100)}
    for id, name in names.items():
        write_picture(folder / "images/mscoco/images/train2014" / name, seed=id)
    objects = [_object(1719310, 581857, 1, SMALL_BOX), _object(1719311, 581857, 1, [20, 6, 10, 12]), _object(7, 72, 1, [0, 0, 8.5, 8])]
    write_json(
        folder / subset / "instances.json",
        {
            "info": {},
            "images": [{"id": id, "file_name": name, "width": 64, "height": 48} for id, name in names.items()],
            "licenses": [],
            "annotations": [*objects, _object(8, 100, 1, SMALL_BOX)],
            "categories": [{"id": 1, "name": "person", "supercategory": "person"}],
        },
    )

    def reference(id: int, annotation: int, image: int, split: str, *sentences: str) -> dict[str, Any]:
        return {
            "sent_ids": list(range(10 * id, 10 * id + len(sentences))),
            "file_name": f"COCO_train2014_{image:012d}_{annotation}.jpg",
            "ann_id": annotation,
            "ref_id": id,
            "image_id": image,
            "split": split,
            "sentences": [
                {"tokens": text.split(), "raw": text.upper(), "sent_id": 10 * id + number, "sent": text}
                for number, text in enumerate(sentences)
            ],
            "category_id": 1,
        }

    references = [
        reference(0, 1719310, 581857, "train", "the lady with the blue shirt", "lady"),
        reference(1, 1719311, 581857, "train", "man"),
        reference(2, 7, 72, "train", "caf\u00e9 sign"),
        reference(3, 8, 100, "val", "boy"),
    ]
    write_pickle(folder / subset / f"refs({split_by}).p", references)


def write_pickle(path: Path, content: Any) -> None:
    """Writes a pickle of protocol 0 whose texts are bytes of UTF-8, as Python 2 wrote them."""
    path.parent.mkdir(parents=True, exist_ok=True)

    def as_bytes(match: re.Match[bytes]) -> bytes:
        return b"S" + repr(match[1].decode("raw-unicode-escape").encode())[1:].encode() + b"\n"

    path.write_bytes(re.sub(rb"V([^\n]*)\n", as_bytes, pickle.dumps(content, protocol=0)))


OPEN_IMAGES_COLUMNS = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"


def write_open_images(folder: Path, *, split: str = "train", lines: list[str] | None = None) -> None:
    """Three boxes of picture 000026e7ee790996, one of them a group, and one of 0000c64e1253d68f; or the lines given."""
    for number, id in enumerate(("000026e7ee790996", "0000c64e1253d68f")):
        write_picture(folder / split / f"{id}.jpg", seed=number)
    default = [
        "000026e7ee790996,xclick,/m/07j7r,1,0.25,0.5,0,0.5,0,0,0,0,0",
        "000026e7ee790996,xclick,/m/0k4j,1,0.5,1,0.25,0.75,0,0,1,0,0",
        "000026e7ee790996,xclick,/m/0k4j,1,0.5,0.75,0.5,1,0,1,0,0,0",
        "0000c64e1253d68f,activemil,/m/0k4j,1,0,1,0,1,0,0,-1,0,0",
    ]
    text = "\n".join([OPEN_IMAGES_COLUMNS, *(default if lines is None else lines)]) + "\n"
    (folder / f"{split}-annotations-bbox.csv").write_text(text, encoding="utf-8")
    (folder / "class-descriptions-boxable.csv").write_text('/m/07j7r,Tree\n/m/0k4j,"Car, small"\n', encoding="utf-8")


def write_objects365(folder: Path, *, split: str = "train") -> None:
    """Picture 420917 of patch 8 with two objects and a group, picture 12 of patch 0 with one."""
    images = {420917: "images/v1/patch8/objects365_v1_00420917.jpg", 12: "images/v2/patch0/objects365_v2_00000012.jpg"}
    for id, name in images.items():
        write_picture(folder / split / Path(name).parent.name / Path(name).name, seed=id)

    def thing(id: int, image: int, category: int, box: list[float], crowd: int = 0) -> dict[str, Any]:
        return {
            "id": id,
            "iscrowd": crowd,
            "isfake": 0,
            "area": box[2] * box[3],
            "isreflected": 0,
            "bbox": box,
            "image_id": image,
            "category_id": category,
        }

    write_json(
        folder / f"zhiyuan_objv2_{split}.json",
        {
            "images": [{"height": 48, "id": id, "license": 5, "width": 64, "file_name": name, "url": ""} for id, name in images.items()],
            "annotations": [
                thing(1, 420917, 2, SMALL_BOX),
                thing(2, 12, 1, [0.5, 0.5, 20.25, 10]),
                thing(3, 420917, 1, WHOLE_BOX, crowd=1),
                thing(4, 420917, 1, [30, 6, 10, 12]),
            ],
            "categories": [{"name": "Person", "id": 1}, {"name": "Cabinet/shelf", "id": 2}],
            "licenses": [],
        },
    )
