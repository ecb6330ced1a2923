"""Files as OpenFace, py-feat, MediaPipe, phones and spreadsheets really write them, and what must come out of them."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from test_align import points_at as landmarks_at
from test_importers import bp4d_tree, bring_in, ckplus_tree, disfa_tree, missing, openface_row, picture, places, write

from expr_lib.apps import cli
from expr_lib.datasets import FaceData
from expr_lib.errors import InputError
from expr_lib.facs import ACTION_UNITS
from expr_lib.images import read_image
from expr_lib.importers.align import CANONICAL
from expr_lib.importers.choose import Choice, chosen
from expr_lib.importers.labels import DLIB_OF_MESH, MESH
from expr_lib.importers.pose import POINTS
from expr_lib.importers.scale import looks_like
from expr_lib.importers.sheet import align_all
from expr_lib.importers.source import PRESENT, folded, parse_number, whole
from expr_lib.importers.write import ImportConfig, import_faces

SMALL = ImportConfig(size=16, processes=1)
GRADED = (1, 2, 4, 5, 6, 7, 9, 10, 12, 14, 15, 17, 20, 23, 25, 26, 45)
CODED = (*GRADED[:-1], 28, 45)


def points_at(width: float = 100, x: float = 70, y: float = 30) -> np.ndarray:
    """68 landmarks (68, 2) of a face seen from the front, whose frame is `width` pixels wide."""
    return landmarks_at(CANONICAL * width + (x, y))


def openface_cells(version: str = "2", points: np.ndarray | None = None, **values: object) -> dict[str, object]:
    """All columns of a default table in the order in which that version writes them; 0.5 where nothing else is said."""
    points = points_at() if points is None else points
    names = {
        "image": ["face", "confidence"],
        "2": ["frame", "face_id", "timestamp", "confidence", "success"],
    }.get(version, ["frame", "timestamp", "confidence", "success"])
    names += [f"gaze_{eye}_{axis}" for eye in (0, 1) for axis in "xyz"]
    if version != "0":
        names += ["gaze_angle_x", "gaze_angle_y"]
        names += [f"eye_lmk_{axis}_{i}" for axis in ("xyXYZ" if version in ("2", "image") else "") for i in range(56)]
    names += [f"pose_{axis}" for axis in ("Tx", "Ty", "Tz", "Rx", "Ry", "Rz")]
    names += [f"{axis}_{i}" for axis in "xyXYZ" for i in range(68)]
    names += ["p_scale", "p_rx", "p_ry", "p_rz", "p_tx", "p_ty", *(f"p_{i}" for i in range(34))]
    names += [f"AU{unit:02d}_r" for unit in GRADED] + [f"AU{unit:02d}_c" for unit in CODED]
    cells: dict[str, object] = dict.fromkeys(names, 0.5)
    cells |= {f"x_{i}": f"{x:.1f}" for i, (x, _) in enumerate(points)}
    cells |= {f"y_{i}": f"{y:.1f}" for i, (_, y) in enumerate(points)}
    cells |= {f"{axis}_{i}": -31.5 for axis in "XYZ" for i in range(68)}  # millimetres
    cells |= {name: 1 for name in names if name.endswith("_c")}
    cells |= {f"AU{unit:02d}_r": f"{unit / 10:.2f}" for unit in GRADED}
    return cells | {"confidence": 0.98} | {k: v for k, v in {"frame": 1, "success": 1, "face_id": 0, "face": 0}.items()
                                           if k in names} | values  # fmt: skip


def table(*rows: dict[str, object], between: str = ", ") -> str:
    return "".join(between.join(map(str, line)) + "\n" for line in (rows[0], *(row.values() for row in rows)))


def labels_csv(out: Path) -> list[dict[str, str]]:
    with (out / "labels.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def takes(out: Path) -> list[tuple[str, str, str]]:
    """Image, person and take of every row."""
    return [(row["image"], row["person"], row["take"]) for row in labels_csv(out)]


# -- columns -------------------------------------------------------------------------------------------------------


def test_exact_names_come_first_and_folded_ones_where_only_one_column_has_them():
    assert folded(("x_0", "X_0", " Face".strip(), "AU01_R")) == ("x_0", "X_0", "face", "au01_r")
    assert folded(("X_0", "Y_0")) == ("x_0", "y_0")
    assert folded(("X_0", "Y_0", "Z_0")) == ("X_0", "Y_0", "Z_0")  # millimetres, no pixels
    assert folded(("Image", "IMAGE")) == ("Image", "IMAGE")


def test_a_needed_column_that_only_differs_in_case_from_another_is_one_clear_error(tmp_path):
    write(tmp_path / "in/labels.csv", "Image,IMAGE,AU1\na.png,b.png,1\n")
    with pytest.raises(ValueError, match=r"labels\.csv: line 1: found no column image"):
        import_faces("table", tmp_path / "in", tmp_path / "out", SMALL, progress=False)
    picture(tmp_path / "in/a.png")
    write(tmp_path / "in/labels.csv", "image,IMAGE,AU1\na.png,b.png,1\n")
    assert bring_in("table", tmp_path / "in", tmp_path / "out")[2] == {"a.png": {"AU1": 1}}


@pytest.mark.parametrize("version", ["2", "1", "0"])
@pytest.mark.parametrize("between", [", ", ","])
def test_the_whole_header_of_every_openface_is_read(tmp_path, version, between):
    root = tmp_path / "in"
    for frame in (1, 2):
        picture(root / f"film_aligned/frame_det_{'00_' * (version == '2')}{frame:06d}.bmp", 50 * frame, (112, 112))
    rows = [openface_cells(version, frame=frame, AU12_r=frame) for frame in (1, 2)]
    write(root / ("film.txt" if version == "0" else "film.csv"), table(*rows, between=between))
    data, report, au = bring_in("openface", root, tmp_path / "out")
    found = list(au.values())
    assert [one["AU12"] for one in found] == [1, 2] and report.cases == []
    assert found[0] == pytest.approx(
        {f"AU{43 if u == 45 else u}": u / 10 for u in GRADED} | {"AU12": 1, "AU28": PRESENT}
    )
    assert [int(image[8, 8, 0]) for image in data.images] == [50, 100] and len(set(data.subject)) == 1


def test_2d_landmarks_are_pixels_and_3d_ones_are_not(tmp_path):
    root = tmp_path / "in"
    for name in ("flat", "space"):
        picture(root / f"imgs/{name}.jpg", 90, (240, 200))
    write(root / "out/flat.csv", table(openface_cells("image")))
    space = {k: v for k, v in openface_cells("image").items() if k[:2] not in ("x_", "y_")}
    write(root / "out/space.csv", table(space))
    data, _, _ = bring_in("openface", root, tmp_path / "out")
    assert data.meta["config"]["cut"] == {"by landmarks": 1, "centre square": 1}


# -- photographs, films, sequences ---------------------------------------------------------------------------------


def test_openface_leaves_cut_faces_and_a_drawn_copy_beside_its_table_and_the_photograph_counts(tmp_path):
    root = tmp_path / "in"
    for name, shade in (("one", 60), ("two", 120)):
        picture(root / f"imgs/{name}.jpg", shade, (240, 200))
        picture(root / f"processed/{name}.jpg", 255, (240, 200))
        picture(root / f"processed/{name}_aligned/face_det_000000.bmp", 200, (112, 112))
        write(root / f"processed/{name}.csv", table(openface_cells("image", AU12_r=shade / 60)))
    data, report, au = bring_in("openface", root, tmp_path / "out")
    assert {image: labels["AU12"] for image, labels in au.items()} == {"imgs/one.jpg": 1, "imgs/two.jpg": 2}
    assert data.images[:, 8, 8, 0].tolist() == [60, 120]
    assert len(set(data.subject)) == 2  # all photographs in one folder, so each is a person
    assert report.counts() == {"note: image that a program made of another, not used": 4}


def test_tables_beside_their_photographs_are_no_ones_elses(tmp_path):
    root = tmp_path / "in"
    for who, level in (("anna", 1), ("ben", 2)):
        picture(root / f"{who}/1.jpg", 60 * level, (240, 200))
        write(root / f"{who}/1.csv", table(openface_cells("image", AU12_r=level)))
        picture(root / f"more/{who}/2.jpg", 60 * level, (240, 200))
        write(root / f"tables/{who}/2.csv", table(openface_cells("image", AU12_r=level)))
    _, report, au = bring_in("openface", root, tmp_path / "out")
    assert {image: labels["AU12"] for image, labels in au.items()} == {
        "anna/1.jpg": 1, "ben/1.jpg": 2, "more/anna/2.jpg": 1, "more/ben/2.jpg": 2,
    }  # fmt: skip
    assert report.cases == []


def test_where_only_the_drawn_copy_is_left_nothing_is_drawn_on_the_learner(tmp_path):
    root = tmp_path / "in"
    picture(root / "out/one.jpg", 255, (240, 200))
    write(root / "out/one.csv", table(openface_cells("image")))
    write(root / "out/one_of_details.txt", "Input:/home/me/one.jpg\nOutput csv:one.csv\nOutput image:one.jpg\n")
    picture(root / "out/two_aligned/face_det_000000.bmp", 80, (112, 112))
    write(root / "out/two.csv", table(openface_cells("image")))
    data, report, au = bring_in("openface", root, tmp_path / "out")
    assert list(au) == ["out/two_aligned/face_det_000000.bmp"] and data.images[0, 8, 8, 0] == 80
    assert places(report, "label without an image") == [("out/one.csv", 2)]


@pytest.mark.parametrize("source", ["/home/me/imgs/one.jpg", r"C:\me\imgs\one.jpg"])
def test_a_table_with_another_name_belongs_to_the_input_that_its_details_name(tmp_path, source):
    root = tmp_path / "in"
    picture(root / "imgs/one.jpg", 90, size=(240, 240)), picture(root / "imgs/two.jpg", 30, size=(240, 240))
    picture(root / "out/result.jpg", 200, size=(240, 240))  # drawn by OpenFace
    write(root / "out/result.csv", table(openface_cells("image")))
    write(root / "out/result_of_details.txt", f"Input:{source}\nOutput image:result.jpg\n")
    for frame in (1, 2):
        picture(root / f"films/clip/{frame:05d}.png", 50 * frame, size=(240, 240))
    write(root / "out/run 7.csv", table(*(openface_cells(frame=frame) for frame in (1, 2))))
    write(root / "out/run 7_of_details.txt", "Input:/home/me/films/clip/\n")
    write(root / "out/live.csv", table(openface_cells()))
    write(root / "out/live_of_details.txt", "Input:webcam\n")
    _, report, au = bring_in("openface", root, tmp_path / "out")
    assert sorted(au) == ["films/clip/00001.png", "films/clip/00002.png", "imgs/one.jpg"]
    assert places(report, "label without an image") == [("out/live.csv", 2)]


def test_a_doubtful_second_face_is_no_second_face_and_a_table_without_rows_found_none(tmp_path):
    root = tmp_path / "in"
    for name in ("one", "none"):
        picture(root / f"imgs/{name}.jpg", 60, (240, 200))
    rows = [openface_cells("image", AU12_r=2), openface_cells("image", face=1, confidence=0.3, AU12_r=5)]
    write(root / "processed/one.csv", table(*rows))
    write(root / "processed/none.csv", table(rows[0]).splitlines()[0] + "\n")
    write(root / "processed/empty.csv", "")
    _, report, au = bring_in("openface", root, tmp_path / "out")
    assert list(au) == ["imgs/one.jpg"] and au["imgs/one.jpg"]["AU12"] == 2
    assert places(report, "face not found for certain") == [("processed/one.csv", 3)]
    assert places(report, "table without a row: no face was found") == [("processed/none.csv", 0)]
    assert places(report, "table that cannot be read") == [("processed/empty.csv", 1)]


@pytest.mark.parametrize(
    ("names", "note"),
    [
        (["film_aligned/frame_det_00_00000{}.bmp", 1], ""),
        (["film_aligned/frame_det_00000{}.bmp", 1], ""),
        (["film_aligned/frame_det_00000{}.png", 1], ""),
        (["film/0000{}.png", 1], ""),
        (["frames/film/0000{}.jpg", 1], ""),
        (["film/frames/img_{}.jpg", 1], ""),
        (["film_frames/{}.png", 1], ""),
        (["pictures/film_000{}.png", 1], ""),
        (["tables/frames/000{}.png", 1], ""),
        (["pictures/film-frame-{}.png", 1], ""),
        (["film/frame_{}.png", 0], "frames of the images counted from 0, those of the table from 1"),
        (["film/{}.png", 41], "frames of the images matched with those of the table in the order of names"),
        (["film/{}.png", "abc"], "frames of the images matched with those of the table in the order of names"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_frames_of_a_film_are_found_by_every_usual_name(tmp_path, names, note):
    root, (pattern, first) = tmp_path / "in", names
    for i in range(3):
        picture(root / pattern.format(first[i] if isinstance(first, str) else first + i), 60 + 30 * i, (240, 200))
    write(root / "tables/film.csv", table(*(openface_cells(frame=i + 1, AU12_r=i) for i in range(3))))
    data, report, au = bring_in("openface", root, tmp_path / "out")
    assert [labels["AU12"] for labels in au.values()] == [0, 1, 2]
    assert data.images[:, 8, 8, 0].tolist() == [60, 90, 120]
    assert list(report.counts()) == ([f"note: {note}"] if note else [])
    assert {(person, take) for _, person, take in takes(tmp_path / "out")} == {("tables/film", "0")}
    whole_frames = "aligned" not in pattern
    assert data.meta["config"]["cut"] == {"by landmarks": 3 * whole_frames, "centre square": 3 * (not whole_frames)}


def test_a_missing_photograph_or_film_is_not_replaced_by_another_persons(tmp_path):
    root = tmp_path / "in"
    for who in ("anna", "ben"):
        write(root / f"tables/{who}/me.csv", table(openface_cells("image", AU12_r=1 + (who == "ben"))))
        write(
            root / f"tables/{who}/film.csv", table(openface_cells(AU12_r=3 + (who == "ben")), openface_cells(frame=2))
        )
    picture(root / "imgs/ben/me.jpg", 90, (240, 200))
    for frame in (1, 2):
        picture(root / f"imgs/ben/film/{frame}.png", 90, (240, 200))
    _, report, au = bring_in("openface", root, tmp_path / "out")
    assert {image: labels["AU12"] for image, labels in au.items()} == pytest.approx(
        {"imgs/ben/me.jpg": 2, "imgs/ben/film/1.png": 4, "imgs/ben/film/2.png": 1.2}
    )
    lost = [("tables/anna/film.csv", 2), ("tables/anna/film.csv", 3), ("tables/anna/me.csv", 2)]
    assert places(report, "label without an image") == lost


def test_films_of_one_name_keep_their_own_frames_and_where_it_is_unclear_none_are_taken(tmp_path):
    root = tmp_path / "in"
    for who, level in (("anna", 1), ("ben", 2)):
        picture(root / f"frames/{who}/film/1.png", 60 * level, (240, 200))
        write(root / f"tables/{who}/film.csv", table(openface_cells(AU12_r=level), openface_cells(frame=2)))
    data, _, au = bring_in("openface", root, tmp_path / "out")
    assert {image: labels["AU12"] for image, labels in au.items()} == {
        "frames/anna/film/1.png": 1, "frames/ben/film/1.png": 2,
    }  # fmt: skip
    assert len(set(data.subject)) == 2
    for who in ("anna", "ben"):
        (root / f"tables/{who}/film.csv").unlink()
    write(root / "elsewhere/film.csv", table(openface_cells(), openface_cells(frame=2)))
    with pytest.raises(
        ValueError, match=r"film whose frames lie in several places +\(elsewhere/film\.csv: frames/anna/film, "
    ):
        import_faces("openface", root, tmp_path / "again", SMALL, progress=False)


@pytest.mark.parametrize("cut_out", [True, False])
def test_each_face_of_a_film_is_a_person_and_a_take(tmp_path, cut_out):
    root = tmp_path / "in"
    rows = []
    for frame in (1, 2):
        for face in (0, 1):
            if cut_out:
                picture(root / f"film_aligned/frame_det_{face:02d}_{frame:06d}.bmp", 50 + 100 * face, (112, 112))
            at = points_at(80, 10 + 110 * face)
            rows.append(openface_cells(points=at, frame=frame, face_id=face, AU12_r=2 * face + frame / 2))
        if not cut_out:
            both = np.full((140, 220, 3), 50, np.uint8)
            both[:, 110:] = 150
            write_picture(root / f"film/{frame:05d}.png", both)
    rows.append(openface_cells(frame=2, face_id=2, confidence=0.2))
    write(root / "film.csv", table(*rows))
    data, _, _ = bring_in("openface", root, tmp_path / "out")
    assert [(int(x), *row[1:]) for x, row in zip(data.images[:, 8, 8, 0], takes(tmp_path / "out"), strict=True)] == [
        (50, "film 0", "0"), (150, "film 1", "1"), (50, "film 0", "0"), (150, "film 1", "1"),
    ]  # fmt: skip
    assert data.au[:, data.au_names.index("AU12")].tolist() == [0.5, 2.5, 1, 3]


def write_picture(path: Path, pixels: np.ndarray) -> Path:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


# -- py-feat -------------------------------------------------------------------------------------------------------


def fex(points: np.ndarray | None = None, **cells: object) -> dict[str, object]:
    row: dict[str, object] = {"FaceScore": 0.99, "AU01": 0.2, "AU12": 0.4}
    if points is not None:
        row |= {f"{axis}_{i}": p[k] for k, axis in enumerate("xy") for i, p in enumerate(points)}
    return row | cells


@pytest.mark.parametrize("first", [0, 1])
def test_pyfeat_films_are_keyed_by_input_and_frame(tmp_path, first):
    root = tmp_path / "in"
    for frame in (0, 24, 48):
        picture(root / f"frames/film_{frame + first:05d}.png", 60 + frame, (240, 200))
    rows = [fex(points_at(), AU12=frame / 100, input="/data/film.mp4", frame=frame) for frame in (0, 24, 48, 72)]
    rows += [fex(points_at(), FaceScore="nan", AU12="nan", input="/data/film.mp4", frame=24)]
    write(root / "fex.csv", table(*rows, between=","))
    if first:
        for frame in range(73):  # as ffmpeg numbers them
            picture(root / f"frames/film_{frame + 1:05d}.png", 60 + frame, (240, 200))
    data, report, au = bring_in("pyfeat", root, tmp_path / "out")
    assert [labels["AU12"] for labels in au.values()] == pytest.approx([0, 1.2, 2.4, 3.6][: 3 + first])
    assert data.images[:, 8, 8, 0].tolist() == [60, 84, 108, 132][: 3 + first]
    assert {row[1:] for row in takes(tmp_path / "out")} == {("/data/film", "0")}
    assert places(report, "face not found for certain") == [("fex.csv", 6)]
    assert places(report, "label without an image") == [("fex.csv", 5)] * (not first)


FEX_AUS = (1, 2, 4, 5, 6, 7, 9, 10, 11, 12, 14, 15, 17, 20, 23, 24, 25, 26, 28, 43)


def whole_fex(points: np.ndarray, who: str, **cells: object) -> dict[str, object]:
    """All columns of a film's table, in the order in which py-feat 0.7 writes them."""
    names = [f"FaceRect{part}" for part in ("X", "Y", "Width", "Height")] + ["FaceScore"]
    names += [f"{axis}_{i}" for axis in "xy" for i in range(68)] + ["Pitch", "Roll", "Yaw", "X", "Y", "Z"]
    names += [f"AU{unit:02d}" for unit in FEX_AUS]
    names += ["anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral"]
    names += [f"Identity_{i}" for i in range(1, 513)]
    names += ["input", "frame", "FrameHeight", "FrameWidth", "approx_time", "Identity"]
    row = dict.fromkeys(names, 0.125) | fex(points, input="film.mp4", approx_time="00:00", Identity=who)
    return row | {f"AU{unit:02d}": unit / 50 for unit in FEX_AUS} | cells


def test_each_identity_of_a_film_by_pyfeat_is_a_person(tmp_path):
    root, left, right = tmp_path / "in", points_at(100, 20), points_at(100, 220)
    for frame in range(4):
        pixels = np.full((200, 400, 3), 40 + frame, np.uint8)
        pixels[:, 200:] = 140 + frame
        write_picture(root / f"film/{frame:05d}.png", pixels)
    rows = [  # within a frame, py-feat gives faces in no order
        whole_fex(left, "Person_0", frame=0), whole_fex(right, "Person_1", frame=0, AU12=0.4),
        whole_fex(right, "Person_1", frame=1, AU12=0.6), whole_fex(left, "Person_0", frame=1),
        whole_fex(left, "Person_0", frame=2), whole_fex(right, "", frame=2),
        whole_fex(left, "Person_0", frame=3), whole_fex(right, "Person_0", frame=3),
    ]  # fmt: skip
    write(root / "fex.csv", table(*rows, between=","))
    data, report, _ = bring_in("pyfeat", root, tmp_path / "out")
    found = list(zip(takes(tmp_path / "out"), data.images[:, 8, 8, 0].tolist(), data.au.tolist(), strict=True))
    one = [unit / 10 for unit in FEX_AUS]
    assert [(image[5:], who, shade) for (image, who, _), shade, _ in found] == [
        ("00000.png", "film Person_0", 40), ("00000.png", "film Person_1", 140),
        ("00001.png", "film Person_1", 141), ("00001.png", "film Person_0", 41), ("00002.png", "film Person_0", 42),
    ]  # fmt: skip
    assert [au == pytest.approx(one) for *_, au in found] == [True, False, False, True, True]
    assert [au[data.au_names.index("AU12")] for *_, au in found] == pytest.approx([1.2, 2, 3, 1.2, 1.2])
    assert {(who, take) for _, who, take in takes(tmp_path / "out")} == {("film Person_0", "0"), ("film Person_1", "1")}
    assert places(report, "face of nobody known in a film of several people") == [("fex.csv", 7)]
    assert places(report, "several faces in one image") == [("fex.csv", 8), ("fex.csv", 9)]

    write(root / "people.csv", "film,nobody\nfilm Person_0,anna\nfilm Person_1,ben\n")  # the film alone is neither's
    bring_in("pyfeat", root, tmp_path / "named")
    assert [who for _, who, _ in takes(tmp_path / "named")] == ["anna", "ben", "ben", "anna", "anna"]


def test_two_faces_in_a_frame_without_an_identity_or_landmarks_are_left_out(tmp_path):
    root = tmp_path / "in"
    for frame in range(2):
        picture(root / f"film/{frame:05d}.png", 90, (240, 200))
    rows = [fex(points_at(), input="film.mp4", frame=n, FaceRectX=k) for n, k in ((0, 1), (0, 2), (1, 1))]
    write(root / "fex.csv", table(*rows, between=","))
    _, report, au = bring_in("pyfeat", root, tmp_path / "out")
    assert list(au) == ["film/00001.png"]
    assert places(report, "several faces in one image") == [("fex.csv", 2), ("fex.csv", 3)]
    rows = [fex(input="film.mp4", frame=n, Identity=f"Person_{k}") for n, k in ((0, 0), (0, 1), (1, 0))]
    write(root / "fex.csv", table(*rows, between=","))
    _, report, au = bring_in("pyfeat", root, tmp_path / "without")
    assert list(au) == ["film/00001.png"] and len(places(report, "several faces in one image")) == 2


def test_pyfeat_photographs_of_one_name_are_told_apart_by_the_longest_end_of_their_path(tmp_path):
    root = tmp_path / "in"
    for who in ("anna", "ben"):
        picture(root / f"people/{who}/1.png", 90)
    picture(root / "people/eve/2.png", 90)
    rows = [fex(AU12=k / 10, input=f"C:\\set\\{who}\\1.png", frame=k) for k, who in enumerate(("anna", "ben", "carl"))]
    rows += [fex(AU12=0.7, input="C:\\set\\dora\\2.png", frame=3), fex(AU12=0.8, input="C:\\set\\eve\\2.png", frame=4)]
    write(root / "fex.csv", table(*rows, between=","))
    _, report, au = bring_in("pyfeat", root, tmp_path / "out")
    assert {image: labels["AU12"] for image, labels in au.items()} == pytest.approx(
        {"people/anna/1.png": 0, "people/ben/1.png": 0.5, "people/eve/2.png": 4}
    )
    # neither carl's photograph nor dora's is there, and those of the others are theirs
    assert [line for _, line in places(report, "label without an image")] == [4, 5]


@pytest.mark.parametrize("shares", [False, True])
def test_the_mesh_of_mediapipe_is_recognised_by_its_columns(tmp_path, shares):
    root = tmp_path / "in"
    picture(root / "imgs/a.jpg", 90, (240, 200))
    mesh = np.tile([120.0, 100.0], (MESH + 10, 1))
    mesh[list(DLIB_OF_MESH)] = points_at()
    mesh /= (240, 200) if shares else 1
    cells = {f"{axis}_{i}": (*p, -1.0)[k] for i, p in enumerate(mesh) for k, axis in enumerate("xyz")}
    write(root / "fex.csv", table(fex(**cells, Yaw=0, input="imgs/a.jpg", frame=0), between=","))
    data, report, au = bring_in("pyfeat", root, tmp_path / "out")
    assert au["imgs/a.jpg"]["AU12"] == 2 and report.cases == []
    assert data.meta["config"]["cut"]["by landmarks"] == 1


def test_a_mesh_that_contradicts_pyfeats_own_pose_is_not_used_and_told(tmp_path):
    root = tmp_path / "in"
    mesh = np.full((MESH, 2), 100.0)
    mesh[list(DLIB_OF_MESH)] = POINTS @ np.array([[0.5, 0], [0, -1], [0.87, 0]]) * 0.5 + (120, 100)  # turned by 60
    cells = {f"{axis}_{i}": (*p, -1.0)[k] for i, p in enumerate(mesh) for k, axis in enumerate("xyz")}
    for name in ("a", "b"):
        picture(root / f"imgs/{name}.jpg", 90, (240, 200))
    write(root / "a.csv", table(fex(**cells, Yaw=0, input="imgs/a.jpg"), between=","))
    write(root / "b.csv", table(fex(**cells, Yaw=70, input="imgs/b.jpg"), between=","))
    _, report, au = bring_in("pyfeat", root, tmp_path / "out")
    assert list(au) == ["imgs/a.jpg"] and places(report, "mesh that contradicts the column Yaw, not used") == [
        ("a.csv", 2)
    ]
    assert places(report, "image that cannot be used") == [("imgs/b.jpg", 0)]


def test_a_mesh_that_is_no_face_is_not_used_and_told(tmp_path):
    root, rng = tmp_path / "in", np.random.default_rng(0)
    mesh = rng.uniform(60, 160, (MESH, 2))
    cells = {f"{axis}_{i}": (*p, -1.0)[k] for i, p in enumerate(mesh) for k, axis in enumerate("xyz")}
    picture(root / "imgs/a.jpg", 90, (240, 200))
    write(root / "a.csv", table(fex(**cells, Yaw=0, input="imgs/a.jpg"), between=","))
    data, report, _ = bring_in("pyfeat", root, tmp_path / "out")
    assert data.meta["config"]["cut"]["centre square"] == 1
    assert places(report, "mesh that contradicts the column Yaw, not used") == [("a.csv", 2)]


# -- blend shapes --------------------------------------------------------------------------------------------------

ARKIT = [
    f"{name}{side}" for name in ("eyeBlink", "eyeLookDown", "eyeLookIn", "eyeLookOut", "eyeLookUp", "eyeSquint",
    "eyeWide", "mouthSmile", "mouthFrown", "mouthDimple", "mouthStretch", "mouthPress", "mouthLowerDown",
    "mouthUpperUp", "browDown", "browOuterUp", "cheekSquint", "noseSneer") for side in ("Left", "Right")
]  # fmt: skip
ARKIT += ["jawForward", "jawLeft", "jawRight", "jawOpen", "mouthClose", "mouthFunnel", "mouthPucker", "mouthLeft"]
ARKIT += ["mouthRight", "mouthRollLower", "mouthRollUpper", "mouthShrugLower", "mouthShrugUpper", "browInnerUp"]
ARKIT += ["cheekPuff", "tongueOut"]


def shapes_of(au: dict[str, float]) -> dict[str, float]:
    """The blend shapes that draw these AUs, as the head model does."""
    cells = dict.fromkeys(ARKIT, 0.0)
    for unit in ACTION_UNITS:
        for shape, weight in unit.shapes.items():
            for name in (shape.replace("*", "Left"), shape.replace("*", "Right")) if "*" in shape else (shape,):
                cells[name] += weight * au.get(unit.name, 0) / 5
    return cells


SEEN = {"AU1": 2.0, "AU4": 1.0, "AU6": 2.5, "AU10": 1.0, "AU12": 4.0, "AU25": 3.0, "AU26": 2.0, "AU43": 5.0}


def test_blend_shapes_become_the_aus_that_draw_them(tmp_path):
    assert len(ARKIT) == 52
    root = tmp_path / "in"
    picture(root / "photos/a b.jpg")
    write(root / "shapes.csv", table({"image": "x/photos/a b.jpg", "_neutral": 0.1} | shapes_of(SEEN), between=","))
    data, _, au = bring_in("blendshapes", root, tmp_path / "out")
    assert len(data.au_names) == 17
    assert au["photos/a b.jpg"] == pytest.approx({unit.name: SEEN.get(unit.name, 0) for unit in ACTION_UNITS}, abs=1e-5)


def test_live_link_face_counts_frames_by_rows_and_one_lost_side_is_the_other(tmp_path):
    root = tmp_path / "in"
    for frame in (1, 2):
        picture(root / f"MySlate_1/{frame:04d}.png", 70 * frame)
    rows = []
    for level in (1, 4):
        cells = shapes_of({"AU12": level}) | {"mouthFrownLeft": ""}
        row = {name[0].upper() + name[1:]: value for name, value in cells.items()}
        rows.append({"Timecode": "10:11:12:13.5", "BlendShapeCount": 61} | row | {"HeadYaw": -0.3})
    rows[1]["MouthDimpleLeft"] = rows[1]["MouthDimpleRight"] = "x"
    lost = dict.fromkeys(rows[0], 0) | {"Timecode": "10:11:12:15.5"}
    write(root / "MySlate_1.csv", table(*rows, lost, between=","))
    data, report, au = bring_in("blendshapes", root, tmp_path / "out")
    one, two = au.values()
    assert one["AU12"] == pytest.approx(1) and two["AU12"] == pytest.approx(4) and one["AU15"] == 0
    assert missing(two["AU14"]) and not missing(two["AU10"]) and data.images[:, 8, 8, 0].tolist() == [70, 140]
    assert len(places(report, "label that is no intensity")) == 2
    assert places(report, "row without a face") == [("MySlate_1.csv", 4)]
    assert [row[1:] for row in takes(tmp_path / "out")] == [("MySlate_1", "0")] * 2


def test_mediapipe_frames_count_from_0_and_py_feat_tables_may_hold_shapes_only(tmp_path):
    root = tmp_path / "in"
    for frame in (0, 1):
        picture(root / f"film/{frame}.png", 70 + 70 * frame)
    cells = {name.replace("Left", "_L").replace("Right", "_R"): value for name, value in shapes_of(SEEN).items()}
    write(root / "film.csv", table({"frame": 0, **cells}, {"frame": 1, **cells, "eyeBlink_L": 0, "eyeBlink_R": 0}))
    _, _, au = bring_in("blendshapes", root, tmp_path / "out")
    assert [labels["AU43"] for labels in au.values()] == pytest.approx([5, 0])
    write(root / "film.csv", table(*({"FaceScore": 1, **cells, "input": "film.mov", "frame": n} for n in (0, 1))))
    _, _, au = bring_in("pyfeat", root, tmp_path / "fex")
    assert [labels["AU12"] for labels in au.values()] == pytest.approx([4, 4])


def test_blend_shapes_of_a_game_engine_in_percent_are_refused(tmp_path):
    picture(tmp_path / "in/a.jpg")
    cells = {name: 100 * value for name, value in shapes_of(SEEN).items()}
    write(tmp_path / "in/shapes.csv", table({"image": "a.jpg"} | cells, between=","))
    with pytest.raises(ValueError, match=r"column \w+: found '[\d.]+', expected 0 to 1: .* looks like percent"):
        import_faces("blendshapes", tmp_path / "in", tmp_path / "out", SMALL, progress=False)


# -- landmarks that do not fit -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("points", "found"),
    [
        (points_at() * 5, "found eyes and mouth in columns"),
        (points_at() - 200, "found eyes and mouth in columns"),
        (points_at(400, -80, -130), "of the face beyond the photograph"),
        (points_at() * 1e300, "found eyes and mouth in columns"),
        (np.where(np.arange(136).reshape(68, 2) == 9, np.nan, points_at()), "expected 68 pairs of finite numbers"),
    ],
    ids=["of a larger picture", "of a cut one", "larger than the picture", "absurd", "not finite"],
)
def test_landmarks_of_another_picture_are_told_and_give_no_face(tmp_path, points, found):
    root = tmp_path / "in"
    for name, at in (("good", points_at()), ("odd", points)):
        picture(root / f"imgs/{name}.jpg", 90, (240, 200))
        write(root / f"processed/{name}.csv", table(openface_cells("image", points=at)))
    _, report, au = bring_in("openface", root, tmp_path / "out")
    assert list(au) == ["imgs/good.jpg"]
    assert places(report, "landmarks that do not fit their image") == [("imgs/odd.jpg", 0)]
    [detail] = [case[4] for case in report.cases if case[1] == "landmarks that do not fit their image"]
    assert found in detail
    assert len(places(report, "landmarks do not fit so many images that those of the others are doubtful")) == 1


def test_a_face_that_reaches_a_little_beyond_its_image_is_kept_and_told(tmp_path):
    picture(tmp_path / "in/imgs/a.jpg", 90, (100, 110))
    write(tmp_path / "in/a.csv", table(openface_cells("image", points=points_at(110, -30, -20))))
    _, report, au = bring_in("openface", tmp_path / "in", tmp_path / "out")
    assert list(au) == ["imgs/a.jpg"]
    assert places(report, "face that reaches beyond its image, with repeated pixels") == [("imgs/a.jpg", 0)]


def test_ckplus_landmarks_of_scaled_images_are_told(tmp_path):
    root = ckplus_tree(tmp_path / "in")
    lines = "".join(f"   {x:.7e}   {y:.7e}\n" for x, y in points_at(200, 220, 145))
    write(root / "Landmarks/S005/001/S005_001_00000003_landmarks.txt", lines)
    _, report, au = bring_in("ckplus", root, tmp_path / "out")
    told = [("cohn-kanade-images/S005/001/S005_001_00000003.png", 0)]
    assert places(report, "landmarks that do not fit their image") == told and len(au) == 3


# -- one bad row never stops an import -----------------------------------------------------------------------------


def test_numbers_are_plain_numbers():
    assert [whole(cell) for cell in ("12", " 007 ", "3.0", "3,0", "²", "9" * 5000, "1e3", "-1", "")] == [
        12, 7, 3, 3, None, None, None, None, None,
    ]  # fmt: skip
    assert parse_number("1,5") == 1.5 and parse_number("-2e-1") == -0.2
    for cell in ("1_000", "nan", "inf", "٣", "0x1", "", "1.2.3"):
        with pytest.raises(ValueError, match="expected a number"):
            parse_number(cell)


ABSURD = ("²", "9" * 5000, "1e999", "-1", "", "../1", "\x00")


@pytest.mark.parametrize("form", ["openface", "pyfeat", "blendshapes", "disfa", "bp4d", "ckplus"])
@pytest.mark.parametrize("absurd", ABSURD, ids=lambda text: ascii(text)[:8])
def test_an_absurd_frame_number_costs_its_own_row(tmp_path, form, absurd):
    root, line = tmp_path / "in", f"{absurd},1\n"
    if form == "disfa":
        file = disfa_tree(root) / "ActionUnit_Labels/SN001/SN001_au1.txt"
    elif form == "bp4d":
        file, line = bp4d_tree(root) / "AUCoding/AU_OCC/F001_T1.csv", f"{absurd},0,1,1\n"
    elif form == "ckplus":
        file, line = ckplus_tree(root) / "FACS/S005/001/S005_001_00000003_facs.txt", f"{absurd} 1\n"
    else:
        cells = {"openface": openface_cells(), "pyfeat": fex(input="film.mp4", frame=1)}
        row = cells.get(form, {"frame": 1} | shapes_of(SEEN))
        for frame in (1, 2):
            picture(root / f"film/{frame}.png", 90, (240, 200))
        rows = [row | {"frame": frame} for frame in (1, 2, absurd)]
        file, line = (
            write(root / "film.csv", table(*rows[:2], between=",")),
            ",".join(map(str, rows[2].values())) + "\n",
        )
    _, before, sound = bring_in(form, root, tmp_path / "sound")
    with file.open("a") as opened:
        opened.write(line)
    _, report, found = bring_in(form, root, tmp_path / "out")
    assert found.keys() == sound.keys() and sum(report.counts().values()) > sum(before.counts().values())


def test_a_lost_quote_a_huge_cell_and_a_cell_over_two_lines(tmp_path):
    for name in "abcd":
        picture(tmp_path / f"in/{name}.png")
    lines = ["image,AU1,by", '"a.png,1,me', f"b.png,2,{'x' * 200_000}", 'c.png,3,"two', 'lines"', "d.png,4,me", ""]
    write(tmp_path / "in/labels.csv", "\n".join(lines))
    _, report, au = bring_in("table", tmp_path / "in", tmp_path / "out")
    assert {image: labels["AU1"] for image, labels in au.items()} == {"c.png": 3, "d.png": 4}
    assert places(report, "line that cannot be read") == [("labels.csv", 3)]
    assert places(report, "line of another length than the header") == [("labels.csv", 2)]


# -- scales --------------------------------------------------------------------------------------------------------


def plain(root: Path, header: str, *rows: str) -> Path:
    for i in range(len(rows)):
        picture(root / f"{i}.png")
    write(root / "labels.csv", "\n".join([f"image{header}", *(f"{i}.png{row}" for i, row in enumerate(rows))]) + "\n")
    return root


def test_presence_columns_of_a_plain_table_are_present_or_absent(tmp_path):
    root = plain(tmp_path / "in", ",AU01_c,AU12_r,AU12_c,AU6L", ",1,0.5,1,1", ",0,0,0,1", ",2,1,1,1", ",TRUE,1,1,1")
    _, report, au = bring_in("table", root, tmp_path / "out")
    assert (
        au["3.png"]["AU1"] == PRESENT
        and au["0.png"] == {"AU1": PRESENT, "AU12": 0.5}
        and au["1.png"] == {"AU1": 0, "AU12": 0}
    )
    assert missing(au["2.png"]["AU1"]) and places(report, "label that is no code") == [("labels.csv", 4)]
    assert places(report, "column that is no action unit, not used") == [("labels.csv", 1)]


def test_letters_are_intensities_and_a_calibration_is_clipped_and_counted(tmp_path):
    root = plain(tmp_path / "in", ";AU1;AU2", ";A;-0,37", ";e;5,21", ";C;2,5", ";;5,6")
    _, report, au = bring_in("table", root, tmp_path / "out")
    assert [labels["AU1"] for labels in au.values()][:3] == [1, 5, 3] and missing(au["3.png"]["AU1"])
    assert [labels["AU2"] for labels in au.values()][:3] == [0, 5, 2.5] and missing(au["3.png"]["AU2"])
    assert places(report, "intensity just outside its scale, clipped") == [("labels.csv", 2), ("labels.csv", 3)]
    assert places(report, "label that is no intensity") == [("labels.csv", 5)]


@pytest.mark.parametrize(
    ("cells", "guess"),
    [
        (("80,10", "100,0"), "percent, 0 to 100"),
        (("80,0.5", "55,1", "0,2", "12,3"), "percent, 0 to 100"),  # one column of two
        (("100,200", "0,400"), "numbers times 100"),
        (("1250,3", "4750,0"), "numbers times 1000"),
        (("7,8", "10,0"), "a scale of 0 to 10"),
        (("Jan 25,Mai 50", "0,1.5"), "text or dates"),
        (("80%,20%", "0%,5%"), "text or dates"),
        (("-2,-3", "0,1"), "a scale with negative numbers"),
    ],
)
def test_another_scale_stops_the_import_and_says_what_it_looks_like(tmp_path, cells, guess):
    root = plain(tmp_path / "in", ",AU1,AU2", *("," + row for row in cells))
    with pytest.raises(
        ValueError, match=rf"in/labels\.csv: line 2, column AU1: found .* it looks like {guess}"
    ) as caught:
        import_faces("table", root, tmp_path / "out", SMALL, progress=False)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_a_lost_decimal_sign_in_one_film_of_several_stops_the_import(tmp_path):
    root = tmp_path / "in"
    for film, times in (("good", 1), ("lost", 100)):
        rows = [openface_cells(frame=n, **{f"AU{u:02d}_r": times * u / 10 for u in GRADED}) for n in range(1, 5)]
        write(root / f"{film}.csv", table(*rows * (20 if times == 1 else 1)))
    with pytest.raises(ValueError, match=r"lost\.csv: line 2, column AU1: found '10.0'.* 4 of 4 .*numbers times 100"):
        import_faces("openface", root, tmp_path / "out", SMALL, progress=False)


def test_one_table_of_rubbish_among_many_photographs_stops_nothing(tmp_path):
    for i in range(4):
        picture(tmp_path / f"in/imgs/{i}.jpg", 90, (240, 200))
        write(
            tmp_path / f"in/{i}.csv",
            table(openface_cells("image", **({f"AU{u:02d}_r": 77 for u in GRADED} if i == 2 else {}))),
        )
    _, report, au = bring_in("openface", tmp_path / "in", tmp_path / "out")
    assert (
        len(au) == 4 and missing(au["imgs/2.jpg"]["AU12"]) and len(places(report, "label that is no intensity")) == 17
    )


def test_numbers_from_0_to_1_in_a_form_of_0_to_5_are_told(tmp_path):
    told = "no intensity is above 1: these look like numbers from 0 to 1, and are read as 0 to 5"
    for name, largest in (("small", 0.9), ("usual", 1.5)):
        root = plain(tmp_path / name, ",AU1", *(f",{i / 20}" for i in range(12)), f",{largest}")
        _, report, _ = bring_in("table", root, tmp_path / f"{name}-out")
        assert places(report, told) == [("labels.csv", 0)] * (name == "small")


def test_guesses_know_the_scale_of_the_form():
    assert looks_like(4.2, 1) == "FACS intensities, 0 to 5" and looks_like(100, 1) == "percent, 0 to 100"


# -- who is who, and takes -----------------------------------------------------------------------------------------


def test_two_films_of_one_person_are_one_person_where_people_csv_says_so(tmp_path):
    root = tmp_path / "in"
    for film in ("monday", "tuesday", "pair"):
        for face in (0, 1)[: 1 + (film == "pair")]:
            picture(root / f"{film}_aligned/frame_det_{face:02d}_000001.bmp", 60, (112, 112))
    for film in ("monday", "tuesday", "pair"):
        rows = [openface_cells(frame=1, face_id=face) for face in (0, 1)[: 1 + (film == "pair")]]
        write(root / f"{film}.csv", table(*rows, *rows[: film != "pair"]))
    write(root / "people.csv", "name,person\nMonday.mp4,Anna\ntuesday,Anna\npair 1,Anna\npair,Ben\nmonday,Carl\n")
    _, report, _ = bring_in("openface", root, tmp_path / "out")
    assert {image: person for image, person, _ in takes(tmp_path / "out")} == {
        "monday_aligned/frame_det_00_000001.bmp": "Anna", "tuesday_aligned/frame_det_00_000001.bmp": "Anna",
        "pair_aligned/frame_det_00_000001.bmp": "pair 0", "pair_aligned/frame_det_01_000001.bmp": "Anna",
    }  # fmt: skip
    assert len({take for *_, take in takes(tmp_path / "out")}) == 4
    assert places(report, "second person of one name") == [("people.csv", 6)]
    assert places(report, "person of something that is not imported") == [("people.csv", 5)]


@pytest.mark.parametrize(
    ("people", "expected"),
    [
        ("SN002;ben\nsn001;ben\n", {"ben"}),
        ("person,note,name\nben,x,LeftVideoSN002_comp\n", {"SN001", "ben"}),
        ("Images/LeftVideoSN001_comp/00001.jpg,eve\n", {"eve", "SN001", "SN002"}),
    ],
    ids=["its own names", "a folder", "an image"],
)
def test_people_csv_is_read_in_every_form(tmp_path, people, expected):
    write(disfa_tree(tmp_path / "in") / "people.csv", people)
    bring_in("disfa", tmp_path / "in", tmp_path / "out")
    assert {person for _, person, _ in takes(tmp_path / "out")} == expected


def test_takes_are_filled_where_the_layout_says_so_and_empty_elsewhere(tmp_path):
    trees = {
        "disfa": disfa_tree(tmp_path / "d"),
        "bp4d": bp4d_tree(tmp_path / "b"),
        "ckplus": ckplus_tree(tmp_path / "c"),
    }
    trees["rafd"] = tmp_path / "r"
    for who, gaze in ((1, "left"), (1, "frontal"), (2, "frontal")):
        picture(tmp_path / f"r/Rafd090_{who:02d}_Caucasian_male_happy_{gaze}.jpg")
    for form, expected in {"disfa": [0, 1], "bp4d": [0], "ckplus": [0, 1], "rafd": [0, 1]}.items():
        bring_in(form, trees[form], tmp_path / form)
        found = takes(tmp_path / form)
        assert sorted({int(take) for *_, take in found}) == expected
        assert len({(person, take) for _, person, take in found}) == len(expected)
    root = plain(tmp_path / "t", ",subject,AU1,take", ",p,1,a", ",p,2,a", ",q,1,a", ",q,3,")
    bring_in("table", root, tmp_path / "table")
    assert [take for *_, take in takes(tmp_path / "table")] == ["0", "0", "1", ""]


# -- names ---------------------------------------------------------------------------------------------------------


def test_names_with_blanks(tmp_path):
    import pickle

    root = tmp_path / "g"
    names = ("a.b", "c d", "e, f")
    for name in names:
        picture(root / f"imgs/{name}.jpg")
    write(root / "aus_openface.pkl", pickle.dumps({name: np.full(17, 1.0) for name in names}, 2))
    write(root / "train_ids.csv", "a.b.jpg\nc d.jpg\n")
    write(root / "test_ids.csv", "e, f.jpg\n")
    data, report, au = bring_in("ganimation", root, tmp_path / "gan")
    assert dict(zip(au, data.split, strict=True)) == {
        "imgs/a.b.jpg": "train", "imgs/c d.jpg": "train", "imgs/e, f.jpg": "test",
    }  # fmt: skip
    assert report.cases == []
    for i in (1, 2):
        picture(tmp_path / f"o/imgs/photo {i}.jpg")
        write(tmp_path / f"o/photo {i}.csv", "\n".join(openface_row()) + "\n")
    write(tmp_path / "o/identity_CelebA.txt", "photo 1.jpg 7\nphoto 2.jpg 7\n")
    bring_in("openface", tmp_path / "o", tmp_path / "of")
    assert {person for _, person, _ in takes(tmp_path / "of")} == {"7"}


def test_flat_names_of_frames(tmp_path):
    root = tmp_path / "b"
    for frame in (1, 2):
        picture(root / f"images/F001_T1_{frame:04d}.jpg")
    write(root / "AUCoding/AU_OCC/F001_T1.csv", "0,1\n1,1\n2,0\n")
    assert [labels["AU1"] for labels in bring_in("bp4d", root, tmp_path / "bp4d")[2].values()] == [PRESENT, 0]
    root = tmp_path / "d"
    for frame in (1, 2):
        picture(root / f"images/SN001_{frame:05d}.jpg")
    write(root / "labels/SN001_au12.txt", "1,4\n2,0\n")
    assert [labels["AU12"] for labels in bring_in("disfa", root, tmp_path / "disfa")[2].values()] == [4, 0]


# -- folders of people, and which face -----------------------------------------------------------------------------


@pytest.fixture
def no_dlib(monkeypatch):
    """Faces are "found" in the middle of every picture, so that the commands can be tried without dlib."""
    monkeypatch.setattr("expr_lib.importers.align.find_faces", lambda photo: [points_at()])


def test_folders_of_people_are_entered_and_no_1_png_is_lost(tmp_path, capsys, no_dlib):
    for who in ("anna", "ben"):
        picture(tmp_path / f"people/{who}/1.png", 90, (240, 200))
        picture(tmp_path / f"people/{who}/1.jpg", 90, (240, 200))
    write(tmp_path / "people/.DS_Store", "x")
    (tmp_path / "people/anna/round").symlink_to(tmp_path / "people", target_is_directory=True)
    out = tmp_path / "people/out"
    for _ in range(2):  # what it wrote is not aligned again
        cli.main(["align", str(tmp_path / "people"), "-o", str(out), "--size", "32"])
        found = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.png"))
        assert found == ["anna/1-2.png", "anna/1.png", "ben/1-2.png", "ben/1.png", "contact-sheet.png"]
    cli.main(["align", *(str(tmp_path / f"people/{who}") for who in ("anna", "ben")), "-o", str(tmp_path / "two")])
    assert {path.parent.name for path in (tmp_path / "two").rglob("1.png")} == {"anna", "ben"}
    assert "left out" not in capsys.readouterr().out


def test_where_no_face_is_found_the_contact_sheet_says_why_and_the_command_fails(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("expr_lib.importers.align.find_faces", lambda photo: [])
    picture(tmp_path / "in/0.png", 90, (240, 200))
    with pytest.raises(SystemExit) as left:
        cli.main(["align", str(tmp_path / "in"), "-o", str(tmp_path / "out")])
    assert left.value.code == 2 and "found no face in any of 1 files" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").rglob("*")] == ["contact-sheet.png"]


def test_the_contact_sheet_has_pages_and_memory_stays_flat(tmp_path, no_dlib):
    import tracemalloc

    picture(tmp_path / "in/0.png", 90, (240, 200))
    for i in range(1, 45):
        (tmp_path / f"in/{i:02d}.png").hardlink_to(tmp_path / "in/0.png")
    peaks = []
    for n in (21, 45):
        tracemalloc.start()
        files = sorted((tmp_path / "in").iterdir())[:n]
        said = list(align_all(files, tmp_path / f"out{n}", 32, Choice()))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        pages = sorted((tmp_path / f"out{n}").glob("contact-sheet*"))
        assert [path.name for path in pages] == [f"contact-sheet-{k}.png" for k in range(1, 2 + (n > 40) + 1)]
        assert len(said) == n + len(pages)
    assert peaks[1] < 1.2 * peaks[0]


def test_one_of_several_faces_is_chosen_from_left_to_right_or_by_size():
    small, large, middle = points_at(50, 10), points_at(80, 200), points_at(60, 90)
    found = [large, small, middle]
    assert chosen(found, Choice(largest=True)) is large
    assert [chosen(found, Choice(face=n)) for n in (1, 2, 3)] == [small, middle, large]
    assert chosen([small], Choice(face=3)) is small
    for choice, message in [
        (Choice(), "found 3 faces, expected one: choose with --largest or --face N"),
        (Choice(face=4), "found 3 faces, expected at least 4"),
    ]:
        with pytest.raises(ValueError, match=message):
            chosen(found, choice)
    for options, message in [
        ({"face": -1}, "face: found -1, expected 1 to 1000"),
        ({"largest": True, "face": 1}, "together with --largest, expected one of the two"),
    ]:
        with pytest.raises(InputError, match=message):
            Choice(**options)


def test_all_commands_that_find_faces_have_the_same_options(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("expr_lib.importers.align.find_faces", lambda photo: [points_at(100, 200), points_at(80, 20)])
    left_and_right = np.full((200, 340, 3), 50, np.uint8)
    left_and_right[:, 150:] = 150
    write_picture(tmp_path / "in/a.png", left_and_right)
    write(tmp_path / "in/labels.csv", "image,AU1\na.png,1\n")
    for options, shade in ((["--face", "1"], 50), (["--face", "2"], 150), (["--largest"], 150)):
        name = "".join(options)
        cli.main(["align", str(tmp_path / "in/a.png"), *options, "-o", str(tmp_path / name), "--size", "32"])
        assert read_image(tmp_path / name / "a.png")[16, 16, 0] == shade
        out = tmp_path / f"import{name}"
        cli.main(["import", "table", str(tmp_path / "in"), str(out), "--size", "16", "--find-faces", *options])
        assert FaceData.open(out).images[0, 8, 8, 0] == shade
    with pytest.raises(SystemExit):
        cli.main(["swap", str(tmp_path / "in/a.png"), str(tmp_path / "in/a.png"), "--largest"])
    assert "expected together with --photographs" in capsys.readouterr().err
    swap = [
        "swap",
        str(tmp_path / "in/a.png"),
        str(tmp_path / "in/a.png"),
        "--photographs",
        "-o",
        str(tmp_path / "s.png"),
    ]
    with pytest.raises(SystemExit):
        cli.main(swap)
    assert "a.png: found 2 faces, expected one: choose with --largest or --face N" in capsys.readouterr().err
    cli.main([*swap, "--face", "1"])
    assert (tmp_path / "s.png").exists()
