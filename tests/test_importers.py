"""Every importer on a made-up tree in its published layout, whole and damaged; and the writer that they share."""

from __future__ import annotations

import csv
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from expr_lib.apps import cli
from expr_lib.datasets import FaceData
from expr_lib.errors import InputError
from expr_lib.importers import write as writing
from expr_lib.importers.source import PRESENT, Report, Tree, au_name
from expr_lib.importers.write import ImportConfig, import_faces

SMALL = ImportConfig(size=16, processes=1)


def picture(path: Path, shade: int = 100, size: tuple[int, int] = (40, 32)) -> Path:
    """An image of one colour, so that it can be told from others after it was scaled."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, shade, shade)).save(path)
    return path


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def bring_in(kind, source: Path, out: Path, config: ImportConfig = SMALL) -> tuple[FaceData, Report, dict]:
    """Import, open with all checks -> data, report, and the AUs of each image by its path in the source."""
    report = import_faces(kind, source, out, config, progress=False)
    data = FaceData.open(out, verify=True)
    with (out / "labels.csv").open(newline="") as file:
        images = [row["image"] for row in csv.DictReader(file)]
    return (
        data,
        report,
        {image: dict(zip(data.au_names, au.tolist(), strict=True)) for image, au in zip(images, data.au, strict=True)},
    )


def places(report: Report, reason: str) -> list[tuple[str, int]]:
    """Files and lines of all cases of a reason."""
    return [(file, line) for _, what, file, line, _ in report.cases if what == reason]


def missing(value: float) -> bool:
    return bool(np.isnan(value))


# -- plain tables --------------------------------------------------------------------------------------------------


def table_tree(root: Path, rows: list[str], header: str = "image,subject,split,AU1,AU12") -> Path:
    for i in range(8):
        picture(root / f"photos/{i}.png", 20 * i)
    write(root / "labels.csv", "\n".join([header, *rows]) + "\n")
    return root


def test_a_plain_table_is_imported_pixel_by_pixel(tmp_path):
    rows = [f"photos/{i}.png,p{i % 2},{'train' if i % 2 else 'test'},{i / 2},{5 - i / 2}" for i in range(8)]
    data, report, au = bring_in("table", table_tree(tmp_path / "in", rows), tmp_path / "out")
    assert data.images.shape == (8, 16, 16, 3) and data.au_names == ("AU1", "AU12")
    assert [int(image[8, 8, 0]) for image in data.images] == [20 * i for i in range(8)]
    assert data.subject.tolist() == [0, 1] * 4 and data.split.tolist() == ["test", "train"] * 4
    assert au["photos/3.png"] == {"AU1": 1.5, "AU12": 3.5} and report.cases == []
    assert data.meta["generator"] == "import table" and data.meta["config"]["cut"] == {
        "by landmarks": 0,
        "centre square": 8,
    }


def test_damaged_rows_are_left_out_and_counted_with_their_lines(tmp_path):
    rows = [
        "photos/0.png,a,,1,2",  # line 2
        "PHOTOS\\1.PNG,a,,1,",  # mixed case, backslash, an empty cell
        "photos/2.png,a,,seven,7",  # no number, out of range
        "photos/9.png,a,,1,2",  # no such image
        "photos/0.png,a,,3,3",  # second label
        "../labels.csv,a,,1,2",  # climbs out
        "/etc/passwd,a,,1,2",
        "photos/3.png,a,,1",  # a cell is missing
        "labels.csv,a,,1,1",  # no image
        "photos/4.png,b,dev,1,1",
        "photos/5.png,b,test,1,1",  # b is in val
        "photos/6.png,c,holiday,1,1",
    ]
    root = table_tree(tmp_path / "in", rows)
    write(root / "photos/7.png", (root / "photos/7.png").read_bytes()[:60])
    (root / "labels.csv").write_text((root / "labels.csv").read_text() + "photos/7.png,d,,1,1\n")
    picture(root / "photos/unlabelled.png")
    data, report, au = bring_in("table", root, tmp_path / "out")
    assert sorted(au) == ["photos/0.png", "photos/1.png", "photos/2.png", "photos/4.png"]
    assert au["photos/0.png"] == {"AU1": 1, "AU12": 2} and missing(au["photos/1.png"]["AU12"])
    assert missing(au["photos/2.png"]["AU1"]) and missing(au["photos/2.png"]["AU12"])
    line = [("labels.csv", n) for n in range(20)]
    assert places(report, "label that is no intensity") == [line[4], line[4]]
    assert places(report, "label without an image") == [line[5]]
    assert places(report, "second label of an image") == [line[6]]
    assert places(report, "path that leads out of the folder") == [line[7], line[8]]
    assert places(report, "line of another length than the header") == [line[9]]
    assert places(report, "label of a file that is no image") == [line[10]]
    assert places(report, "other split than the person's first row has") == [line[12]]
    assert places(report, "unknown split") == [line[13]]
    assert places(report, "image that cannot be used") == [("photos/7.png", 0)]
    assert places(report, "image without a label") == [("photos/3.png", 0), ("photos/unlabelled.png", 0)]
    assert data.meta["report"] == report.counts() and sum(report.counts().values()) == len(report.cases) == 13
    with (tmp_path / "out/report.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 13
    assert "5" not in data.split and set(data.split[data.subject == 1]) == {"val"}


@pytest.mark.parametrize(
    "text",
    [
        "image,AU1,AU12\r\nphotos/0.png,1.5,2\r\nphotos/1.png,,3\r\n",
        "image;AU1;AU12\nphotos/0.png;1,5;2\nphotos/1.png;;3,0\n",
        '\ufeffimage,AU1,AU12\nphotos/0.png,"1,5",2\n\nphotos/1.png,,3',
        " Image\t au01_R\tAu12 \nphotos/0.png\t1.5\t2\nPhotos/1.PNG\tNaN\t3\n",
    ],
    ids=["CRLF", "decimal commas", "mark and quoted commas", "tabs and mixed case"],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_the_ways_in_which_spreadsheets_write_tables(tmp_path, text, encoding):
    root = table_tree(tmp_path / "in", [])
    write(root / "labels.csv", text.removeprefix("\ufeff" * (encoding == "utf-16")).encode(encoding))
    _, report, au = bring_in("table", root, tmp_path / "out")
    assert au["photos/0.png"] == {"AU1": 1.5, "AU12": 2} and missing(au["photos/1.png"]["AU1"])
    assert report.counts() == {"left out: image without a label": 6}


def test_text_in_another_encoding_is_refused_with_its_line(tmp_path):
    root = table_tree(tmp_path / "in", [])
    write(root / "labels.csv", "image,AU1\nphotos/0.png,1\nphotos/Zoë.png,1\n".encode("latin-1"))
    with pytest.raises(
        ValueError, match=r"labels\.csv: line 3: found bytes that are not UTF-8, expected text in UTF-8"
    ):
        import_faces("table", root, tmp_path / "out", SMALL, progress=False)


@pytest.mark.parametrize(
    ("header", "message"),
    [("file,AU1", "found no column image"), ("image,AU1,au1", "found column au1 twice, expected it once")],
)
def test_a_table_without_its_columns_is_one_clear_error(tmp_path, header, message):
    root = table_tree(tmp_path / "in", ["photos/0.png,1"], header)
    with pytest.raises(ValueError, match=rf"labels\.csv: line 1: {message}"):
        import_faces("table", root, tmp_path / "out", SMALL, progress=False)


def test_au_names_are_those_of_this_project():
    assert [au_name(name) for name in ("AU01_r", "au1", "AU 2", "12", "AU45_c", "AU43")] == [
        "AU1", "AU1", "AU2", "AU12", "AU43", "AU43",
    ]  # fmt: skip
    assert au_name("AUx") is au_name("AU0") is au_name("audio") is au_name("AU1_x") is au_name("") is None


def test_columns_that_are_not_understood_are_told_and_one_at_least_must_be(tmp_path):
    root = table_tree(tmp_path / "in", ["photos/0.png,1,2,3,4,me"], "image,AU43,AU45,AU100,12,author")
    _, report, au = bring_in("table", root, tmp_path / "out")
    assert au["photos/0.png"] == {"AU43": 1}  # a blink is eyes closed: the first of both columns counts
    assert places(report, "second label of an action unit") == [("labels.csv", 2)]
    assert places(report, "column that is no action unit, not used") == [("labels.csv", 1)] * 3
    table_tree(root, ["photos/0.png,4"], "image,smile")
    with pytest.raises(ValueError, match=r"labels\.csv: found no column of an action unit, expected AU1, AU2"):
        import_faces("table", root, tmp_path / "other", SMALL, progress=False)


# -- nothing outside the folder ------------------------------------------------------------------------------------


def test_links_out_of_the_folder_and_loops_are_not_followed(tmp_path):
    outside = picture(tmp_path / "private/secret.png", 255)
    root = table_tree(tmp_path / "in", ["photos/0.png,a,,1,1", "photos/leak.png,a,,1,1", "photos/inner.png,b,,1,1"])
    (root / "photos/leak.png").symlink_to(outside)
    (root / "photos/inner.png").symlink_to(root / "photos/1.png")
    (root / "photos/round").symlink_to(root, target_is_directory=True)
    (root / "photos/self.png").symlink_to(root / "photos/self.png")
    data, report, au = bring_in("table", root, tmp_path / "out")
    assert sorted(au) == ["photos/0.png", "photos/inner.png"] and data.images.max() < 255
    assert places(report, "link that leads out of the folder") == [("photos/leak.png", 0)]
    assert places(report, "link to a folder, not followed") == [("photos/round", 0)]
    assert len(places(report, "neither a file nor a folder, or a broken link")) == 1
    assert places(report, "label without an image") == [("labels.csv", 3)]


def test_a_folder_that_may_not_be_read_is_told(tmp_path, monkeypatch):
    root, scan = table_tree(tmp_path / "in", ["photos/0.png,a,,1,1"]), os.scandir
    picture(root / "locked/1.png")

    def guarded(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", guarded)
    report = Report()
    assert "locked/1.png" not in Tree(root, report).files.values()
    assert places(report, "folder that cannot be read") == [("locked", 0)]


def test_a_folder_reached_through_a_link_is_the_users_own_choice(tmp_path):
    table_tree(tmp_path / "disk/in", ["photos/0.png,a,,1,1"])
    (tmp_path / "in").symlink_to(tmp_path / "disk/in", target_is_directory=True)
    assert len(bring_in("table", tmp_path / "in", tmp_path / "out")[0]) == 1


# -- DISFA ---------------------------------------------------------------------------------------------------------


def disfa_tree(root: Path, first_frame: int = 1) -> Path:
    for subject in ("SN001", "SN002"):
        for frame in range(4):
            picture(root / f"Images/LeftVideo{subject}_comp/{frame + first_frame:05d}.jpg", 50 + frame)
        for unit in (1, 12, 26):
            lines = "".join(f"{frame},{(frame + unit) % 6}\r\n" for frame in range(1, 5))
            write(root / f"ActionUnit_Labels/{subject}/{subject}_au{unit}.txt", lines)
    return root


@pytest.mark.parametrize("first_frame", [0, 1])
def test_disfa(tmp_path, first_frame):
    data, report, au = bring_in("disfa", disfa_tree(tmp_path / "in", first_frame), tmp_path / "out")
    assert len(data) == 8 and data.au_names == ("AU1", "AU12", "AU26") and len(np.unique(data.subject)) == 2
    assert au[f"Images/LeftVideoSN002_comp/{first_frame + 2:05d}.jpg"] == {"AU1": 4, "AU12": 3, "AU26": 5}  # frame 3
    shifted = "note: frames of the images counted from 0, those of the labels from 1"
    assert report.counts() == ({} if first_frame else {shifted: 2})


def test_disfa_plus(tmp_path):
    """As published programs read it: a folder for each trial, two lines of header, five blanks in each line."""
    root = tmp_path / "in"
    for k, trial in enumerate(("A1_AU1_TrialNo_1", "A1_AU1_TrialNo_2")):
        for frame in range(3):
            picture(root / f"Images/SN001/{trial}/{frame:03d}.jpg", 50 + 20 * k + frame)
        for unit in (1, 12):
            lines = "".join(f"{frame:03d}.jpg     {(frame + unit + k) % 6}\r\n" for frame in range(3))
            write(root / f"Labels/SN001/{trial}/AU{unit}.txt", f"SN001 {trial}\r\nImage     Intensity\r\n{lines}")
    data, report, au = bring_in("disfa", root, tmp_path / "out")
    assert report.counts() == {} and len(au) == len(data) == 6 and len(np.unique(data.subject)) == 1
    assert au["Images/SN001/A1_AU1_TrialNo_2/002.jpg"] == {"AU1": 4, "AU12": 3}
    assert data.images[:, 8, 8, 0].tolist() == pytest.approx([50, 51, 52, 70, 71, 72], abs=2)
    assert data.take.tolist() == [0, 0, 0, 1, 1, 1]
    file = root / "Labels/SN001/A1_AU1_TrialNo_1/AU1.txt"
    write(file, "000.jpg     6\n000.jpg     1\n004.jpg     1\nhello\n")  # no header
    _, report, au = bring_in("disfa", root, tmp_path / "again")
    file = "Labels/SN001/A1_AU1_TrialNo_1/AU1.txt"
    assert missing(au["Images/SN001/A1_AU1_TrialNo_1/000.jpg"]["AU1"])
    assert places(report, "label that is no intensity") == [(file, 1)]
    assert places(report, "second label of a frame") == [(file, 2)]
    assert places(report, "label without an image") == [(file, 3)]
    assert places(report, "line that is not image and intensity") == [(file, 4)]
    assert len(places(report, "frame that a label file lacks")) == 3
    disfa_tree(root)
    with pytest.raises(InputError, match=r"_au1\.txt of DISFA and Labels/.+ of DISFA\+, expected one of the two"):
        import_faces("disfa", root, tmp_path / "both", SMALL, progress=False)


def test_a_damaged_disfa(tmp_path):
    root = disfa_tree(tmp_path / "in")
    labels = root / "ActionUnit_Labels"
    (labels / "SN002/SN002_au26.txt").unlink()
    write(labels / "SN001/SN001_au1.txt", "1,0\n2,x\n2,1\n3,6\n9,1\nhello\n")
    (labels / "SN001/SN001_au12.txt").rename(labels / "SN001/sn001_AU12.TXT")
    write(labels / "SN001/SN001_au26.txt", "1;0,0\n2;1,5\n3;2,0\n4;0,0\n")
    picture(root / "Images/LeftVideoSN001_comp/00077.jpg")
    _, report, au = bring_in("disfa", root, tmp_path / "out")
    frame = [au.get(f"Images/LeftVideoSN001_comp/{i:05d}.jpg", {}) for i in range(5)]
    assert frame[1] == {"AU1": 0, "AU12": 1, "AU26": 0} and frame[2]["AU26"] == 1.5
    assert all(missing(frame[i]["AU1"]) for i in (2, 3, 4)) and frame[4]["AU12"] == 4
    assert all(missing(values["AU26"]) for image, values in au.items() if "SN002" in image)
    file = "ActionUnit_Labels/SN001/SN001_au1.txt"
    assert places(report, "label that is no intensity") == [(file, 2), (file, 4)]
    assert places(report, "second label of a frame") == [(file, 3)]
    assert places(report, "label without an image") == [(file, 5)]
    assert places(report, "line that is not frame,intensity") == [(file, 6)]
    assert places(report, "no label file") == [("SN002", 0)]
    assert places(report, "frame that a label file lacks") == [("ActionUnit_Labels/SN001/sn001_AU12.TXT", 4)]
    assert places(report, "image without a label") == [("Images/LeftVideoSN001_comp/00077.jpg", 0)]


# -- BP4D and BP4D+ ------------------------------------------------------------------------------------------------


def bp4d_tree(root: Path, images: str = "2D+3D/") -> Path:
    for frame in range(1, 5):
        picture(root / f"{images}F001/T1/{frame:04d}.jpg", 40 * frame)
    write(root / "AUCoding/AU_OCC/F001_T1.csv", "0,1,6,12\n1,0,1,0\n2,1,0,9\n3,9,1,1\n")
    write(root / "AUCoding/AU_INT/AU06/F001_T1_AU06.csv", "1,3\n2,0\n3,9\n")
    write(root / "AUCoding/AU_INT/AU12/F001_T1_AU12.csv", "1,0\n2,9\n3,4\n")
    return root


@pytest.mark.parametrize("images", ["2D+3D/", "BP4D-training/"], ids=["BP4D+", "BP4D"])
def test_bp4d_takes_intensities_where_it_has_them_and_9_is_unknown(tmp_path, images):
    data, report, au = bring_in("bp4d", bp4d_tree(tmp_path / "in", images), tmp_path / "out")
    one, two, three = (au[f"{images}F001/T1/{i:04d}.jpg"] for i in (1, 2, 3))
    assert one == {"AU1": 0, "AU6": 3, "AU12": 0} and two["AU1"] == PRESENT and two["AU6"] == 0
    assert missing(two["AU12"]) and missing(three["AU1"]) and missing(three["AU6"]) and three["AU12"] == 4
    assert report.counts() == {"left out: image without a label": 1} and len(data) == 3  # frame 4 was not coded


def test_a_damaged_bp4d(tmp_path):
    root = bp4d_tree(tmp_path / "in")
    write(root / "AUCoding/AU_OCC/F001_T1.csv", "0,1,6,12\n1,0,1,0\n1,0,1,0\n2,7,0,1\n3,1\n8,0,0,0\n")
    write(root / "AUCoding/AU_OCC/M002_T3.csv", "frame,brow\n1,0\n")
    write(root / "AUCoding/AU_INT/AU06/F001_T1_AU06.csv", "1,3\n")
    _, report, au = bring_in("bp4d", root, tmp_path / "out")
    assert sorted(au) == ["2D+3D/F001/T1/0001.jpg", "2D+3D/F001/T1/0002.jpg"]
    assert missing(au["2D+3D/F001/T1/0002.jpg"]["AU1"]) and missing(au["2D+3D/F001/T1/0002.jpg"]["AU6"])
    file = "AUCoding/AU_OCC/F001_T1.csv"
    assert places(report, "second label of a frame") == [(file, 3)]
    assert places(report, "label that is no code") == [(file, 4)]
    assert places(report, "line of another length than the header") == [(file, 5)]
    assert places(report, "label without an image") == [(file, 6)]
    assert places(report, "label file without AU numbers in line 1") == [("AUCoding/AU_OCC/M002_T3.csv", 1)]
    assert places(report, "frame that an intensity file lacks") == [("AUCoding/AU_INT/AU06/F001_T1_AU06.csv", 0)]
    lacked = places(report, "intensity of a frame that the occurrence file lacks")
    assert lacked == [("AUCoding/AU_INT/AU12/F001_T1_AU12.csv", 3)]


def test_bp4d_films_that_lack_an_action_unit_or_a_file_are_told(tmp_path):
    root = bp4d_tree(tmp_path / "in")
    picture(root / "2D+3D/M002/T3/001.jpg")
    picture(root / "2D+3D/M002/T4/001.jpg")
    write(root / "AUCoding/AU_OCC/M002_T3.csv", "0,1,12\n1,1,0\n")
    write(root / "AUCoding/AU_OCC/M002_T4.csv", "0,1,43,45\n1,1,0,1\n")  # both are AU43 here
    write(root / "AUCoding/AU_INT/AU06/M009_T1_AU06.csv", "1,3\n")
    write(root / "AUCoding/AU_INT/AU06/M009_T1_AU006x.csv", "1,3\n")
    _, report, au = bring_in("bp4d", root, tmp_path / "out")
    assert missing(au["2D+3D/M002/T3/001.jpg"]["AU6"]) and len(au) == 4
    assert places(report, "action unit that a label file lacks") == [("AUCoding/AU_OCC/M002_T3.csv", 0)]
    assert places(report, "label file that has an action unit twice") == [("AUCoding/AU_OCC/M002_T4.csv", 1)]
    orphan = ("AUCoding/AU_INT/AU06/M009_T1_AU06.csv", 0)
    assert places(report, "intensity file of a film without an occurrence file") == [orphan]
    unused = places(report, "file that is neither an image nor a label file of this form, not used")
    assert ("AUCoding/AU_INT/AU06/M009_T1_AU006x.csv", 0) in unused


# -- CK+ -----------------------------------------------------------------------------------------------------------


def ckplus_tree(root: Path) -> Path:
    for sequence, frames in (("S005/001", 3), ("S010/002", 2)):
        name = sequence.replace("/", "_")
        for frame in range(1, frames + 1):
            picture(root / f"cohn-kanade-images/{sequence}/{name}_{frame:08d}.png", 40 * frame)
    write(root / "FACS/S005/001/S005_001_00000003_facs.txt", "   4.0000000e+00   2.0000000e+00\n   6.2e+01   0\n")
    write(root / "FACS/S010/002/S010_002_00000002_facs.txt", "  12   5.0000000e+00\r\n  45   0.0000000e+00\r\n")
    return root


def test_ckplus_peaks_are_coded_and_first_frames_neutral(tmp_path):
    data, report, au = bring_in("ckplus", ckplus_tree(tmp_path / "in"), tmp_path / "out")
    assert data.au_names == ("AU4", "AU12", "AU43") and len(data) == 4
    assert au["cohn-kanade-images/S005/001/S005_001_00000003.png"] == {"AU4": 2, "AU12": 0, "AU43": 0}
    assert au["cohn-kanade-images/S010/002/S010_002_00000002.png"] == {"AU4": 0, "AU12": 5, "AU43": PRESENT}
    assert set(au["cohn-kanade-images/S005/001/S005_001_00000001.png"].values()) == {0}
    assert places(report, "code of a head or eye position, not used") == [
        ("FACS/S005/001/S005_001_00000003_facs.txt", 2)
    ]
    assert report.counts()["left out: image without a label"] == 1  # frame 2 of S005_001
    assert report.counts()["note: first frame of a coded sequence, taken as neutral"] == 2


def test_a_damaged_ckplus(tmp_path):
    root = ckplus_tree(tmp_path / "in")
    write(root / "FACS/S005/001/S005_001_00000003_facs.txt", "4 9\n1.5 2\nbrow 3\n1 2\n")
    write(root / "FACS/S011/001/S011_001_00000009_facs.txt", "1 1\n")
    write(root / "Landmarks/S005/001/S005_001_00000003_landmarks.txt", "1 2\n")
    _, report, au = bring_in("ckplus", root, tmp_path / "out")
    peak, file = au["cohn-kanade-images/S005/001/S005_001_00000003.png"], "FACS/S005/001/S005_001_00000003_facs.txt"
    assert missing(peak["AU4"]) and peak["AU1"] == 2
    assert missing(peak["AU12"])  # a line cannot be read: it may be about any AU that no other line names
    assert places(report, "label that is no intensity") == [(file, 1)]
    assert places(report, "unknown action unit") == [(file, 2)]
    assert places(report, "line that is not AU and intensity") == [(file, 3)]
    assert places(report, "label without an image") == [("FACS/S011/001/S011_001_00000009_facs.txt", 1)]
    assert len(places(report, "landmarks that are not 68 pairs, not used")) == 1


def test_ckplus_takes_no_face_for_neutral_whose_sequence_has_lost_its_beginning(tmp_path):
    root = ckplus_tree(tmp_path / "in")
    (root / "cohn-kanade-images/S005/001/S005_001_00000001.png").unlink()
    write(root / "FACS/S010/002/S010_002_00000002_facs.txt", "")  # an empty file says nothing, not that all is at rest
    _, report, au = bring_in("ckplus", root, tmp_path / "out")
    first = "cohn-kanade-images/S005/001/S005_001_00000002.png"
    assert places(report, "sequence whose first frame is not there, so no neutral face is taken") == [(first, 0)]
    assert places(report, "label file without a label") == [("FACS/S010/002/S010_002_00000002_facs.txt", 0)]
    assert [path[-12:-4] for path in au] == ["00000003", "00000001"]


# -- RaFD ----------------------------------------------------------------------------------------------------------


def test_rafd_labels_are_in_the_file_names(tmp_path):
    root = tmp_path / "in"
    picture(root / "Rafd090_01_Caucasian_female_happy_frontal.jpg")
    picture(root / "Rafd090_02_Moroccan_male_angry_left.JPG")
    picture(root / "rafd090_02_moroccan_male_Neutral_right.jpg")
    picture(root / "Rafd045_01_Caucasian_female_happy_frontal.jpg")
    picture(root / "Rafd090_01_Caucasian_female_bored_frontal.jpg")
    picture(root / "group.jpg")
    data, report, au = bring_in("rafd", root, tmp_path / "out")
    happy = au["Rafd090_01_Caucasian_female_happy_frontal.jpg"]
    assert happy["AU12"] == 4 and happy["AU6"] == PRESENT and happy["AU4"] == 0
    angry = au["Rafd090_02_Moroccan_male_angry_left.JPG"]
    assert angry["AU4"] == 4 and missing(angry["AU23"]) and missing(angry["AU24"])
    assert set(au["rafd090_02_moroccan_male_Neutral_right.jpg"].values()) == {0}
    assert data.subject.tolist() == [0, 1, 1]
    assert len(places(report, "camera not in front of the face")) == len(places(report, "unknown expression")) == 1
    assert ("group.jpg", 0) in places(report, "image without a label")


# -- OpenFace ------------------------------------------------------------------------------------------------------


def openface_row(points: np.ndarray | None = None, **cells: object) -> tuple[str, str]:
    """Header and one row, with the blanks that OpenFace writes before its names."""
    cells = {"face": 0, "confidence": 0.98, "AU01_r": 1.25, "AU45_r": 0.0, "AU28_c": 1.0} | cells
    if points is not None:
        cells |= {f"x_{i}": x for i, (x, _) in enumerate(points)} | {f"y_{i}": y for i, (_, y) in enumerate(points)}
    return ", ".join(cells), ", ".join(map(str, cells.values()))


def test_openface_tables_of_single_photographs_with_celebas_identities(tmp_path):
    root = tmp_path / "in"
    for i in range(1, 7):
        picture(root / f"img_align_celeba/{i:06d}.jpg", 30 * i)
    header, row = openface_row()
    for i, text in enumerate(
        [row, openface_row(AU01_r=0)[1], openface_row(confidence=0.5)[1], f"{row}\n{row}", openface_row(AU28_c=2)[1]], 1
    ):
        write(root / f"processed/{i:06d}.csv", f"{header}\n{text}\n")
    write(root / "processed/000099.csv", f"{header}\n{row}\n")
    write(root / "processed/notes.csv", "a,b\n1,2\n")
    write(root / "identity_CelebA.txt", "000001.jpg 2880\n000002.jpg 7\n000005.jpg 7\n000002.jpg 9\nnobody\n")
    data, report, au = bring_in("openface", root, tmp_path / "out")
    assert au["img_align_celeba/000001.jpg"] == {"AU1": 1.25, "AU28": PRESENT, "AU43": 0}
    assert sorted(au) == [f"img_align_celeba/{i:06d}.jpg" for i in (1, 2, 5)] and data.subject.tolist() == [0, 1, 1]
    assert missing(au["img_align_celeba/000005.jpg"]["AU28"])
    assert places(report, "label that is no code") == [("processed/000005.csv", 2)]
    assert places(report, "second person of an image") == [("identity_CelebA.txt", 4)]
    assert places(report, "line that is not image and person") == [("identity_CelebA.txt", 5)]
    assert places(report, "face not found for certain") == [("processed/000003.csv", 2)]
    assert places(report, "several faces in one image") == [("processed/000004.csv", 2), ("processed/000004.csv", 3)]
    assert places(report, "label without an image") == [("processed/000099.csv", 2)]
    assert places(report, "table without AU columns") == [("processed/notes.csv", 0)]


def test_openface_frames_of_a_film(tmp_path):
    root = tmp_path / "in"
    for frame in (1, 2):
        picture(root / f"anna_aligned/frame_det_00_{frame:06d}.bmp", 100 + frame)
    rows = [openface_row(frame=frame, face_id=0, success=good) for frame, good in ((1, 1), (2, 0), (3, 1), (1, 1))]
    rows += [openface_row(frame="../1", face_id=0, success=1), openface_row(frame=2, face_id=0, success="nan")]
    write(root / "anna.csv", "\n".join([rows[0][0], *(row for _, row in rows)]))
    data, report, _ = bring_in("openface", root, tmp_path / "out")
    assert len(data) == 1 and data.images[0, 0, 0, 0] == 101
    assert places(report, "face not found for certain") == [("anna.csv", 3), ("anna.csv", 7)]
    assert places(report, "label without an image") == [("anna.csv", 4)]
    assert places(report, "second label of an image") == [("anna.csv", 5)]
    assert places(report, "frame that is no number") == [("anna.csv", 6)]


# -- py-feat -------------------------------------------------------------------------------------------------------


def test_pyfeat_probabilities_become_intensities_of_0_to_5(tmp_path):
    root, header = tmp_path / "in", "FaceScore,AU01,AU12,anger,input,frame"
    for name in ("ann", "bob", "eve", "two"):
        picture(root / f"photos/{name}.jpg")
    picture(tmp_path / "secret.jpg")
    rows = [
        "0.99,0.5,1,0.1,/home/me/photos/ann.jpg,0",
        "0.99,0.2,1.3,0.1,C:\\photos\\BOB.jpg,0",
        ",,,,photos/eve.jpg,0",
    ]
    rows += ["0.99,0,0,0,two.jpg,0", "0.95,0,0,0,two.jpg,0", "0.9,0,0,0,../secret.jpg,0"]
    write(root / "fex.csv", "\n".join([header, *rows]))
    data, report, au = bring_in("pyfeat", root, tmp_path / "out")
    assert data.au_names == ("AU1", "AU12") and au["photos/ann.jpg"] == {"AU1": 2.5, "AU12": 5}
    assert au["photos/bob.jpg"]["AU1"] == 1 and missing(au["photos/bob.jpg"]["AU12"])
    assert places(report, "label that is no intensity") == [("fex.csv", 3)]
    assert places(report, "face not found for certain") == [("fex.csv", 4)]
    assert places(report, "several faces in one image") == [("fex.csv", 5), ("fex.csv", 6)]
    assert places(report, "label without an image") == [("fex.csv", 7)]


# -- GANimation ----------------------------------------------------------------------------------------------------


def ganimation_tree(root: Path, labels: object, protocol: int = 2) -> Path:
    for i in range(4):
        picture(root / f"imgs/N_{i}.jpg")
    write(root / "aus_openface.pkl", pickle.dumps(labels, protocol))
    write(root / "train_ids.csv", "N_0.jpg\nN_1.jpg\n")
    write(root / "test_ids.csv", "N_2.jpg\n")
    return root


def test_a_damaged_ganimation(tmp_path):
    labels = {f"N_{i}": np.full(17, 1.0) for i in range(3)}
    labels["N_0"][[0, 1]] = 7.5, np.nan
    root = ganimation_tree(tmp_path / "in", labels)
    write(root / "test_ids.csv", "N_2.jpg\nN_8.jpg\n")
    _, report, au = bring_in("ganimation", root, tmp_path / "out")
    assert missing(au["imgs/N_0.jpg"]["AU1"]) and missing(au["imgs/N_0.jpg"]["AU2"]) and au["imgs/N_0.jpg"]["AU4"] == 1
    assert places(report, "label that is no intensity") == [("aus_openface.pkl", 1)]
    assert places(report, "image of a split without a label") == [("test_ids.csv", 2)]


@pytest.mark.parametrize("protocol", range(6))
def test_the_ganimation_folder(tmp_path, protocol):
    labels = {f"N_{i}": np.linspace(0, i, 17) for i in range(4)} | {"gone": np.zeros(17), "short": np.zeros(3)}
    labels |= {"../N_1": np.zeros(17)}
    data, report, au = bring_in("ganimation", ganimation_tree(tmp_path / "in", labels, protocol), tmp_path / "out")
    assert data.split.tolist() == ["train", "train", "test"] and len(data.au_names) == 17
    assert au["imgs/N_2.jpg"]["AU43"] == 2 and au["imgs/N_1.jpg"]["AU12"] == pytest.approx(0.5)
    assert report.counts() == {
        "left out: image in neither train_ids.csv nor test_ids.csv": 1,
        "left out: label without an image": 1,
        "left out: entry that is not 17 numbers": 1,
        "left out: path that leads out of the folder": 1,
        "left out: image without a label": 1,
    }


class Attack:
    def __reduce__(self):
        return os.system, ("touch pwned",)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_runs_a_program_is_refused_by_name_and_runs_nothing(tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    root = ganimation_tree(tmp_path / "in", {"N_0": np.zeros(17), "N_1": Attack()}, protocol)
    with pytest.raises(
        ValueError, match=r"aus_openface\.pkl: refused: it asks for (posix|nt)\.system, expected arrays"
    ):
        import_faces("ganimation", root, tmp_path / "out", SMALL, progress=False)
    assert not (tmp_path / "pwned").exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "payload",
    [b"", b"hello", pickle.dumps({"a": np.zeros(17)})[:-20], pickle.dumps([1, 2]), pickle.dumps({3: np.zeros(17)})],
    ids=["empty", "text", "cut", "a list", "numbers as names"],
)
def test_a_damaged_pickle_is_one_clear_error(tmp_path, payload):
    root = ganimation_tree(tmp_path / "in", {})
    write(root / "aus_openface.pkl", payload)
    with pytest.raises(ValueError, match=r"aus_openface\.pkl: (damaged|found a)"):
        import_faces("ganimation", root, tmp_path / "out", SMALL, progress=False)


@pytest.mark.parametrize("name", ["builtins.eval", "numpy.load", "subprocess.Popen", "numpy.core.multiarray.fromfile"])
def test_other_callables_are_refused_too(tmp_path, name):
    module, attribute = name.rsplit(".", 1)
    payload = f"c{module}\n{attribute}\n(S'1'\ntR.".encode()
    root = ganimation_tree(tmp_path / "in", {})
    write(root / "aus_openface.pkl", payload)
    with pytest.raises(ValueError, match=f"it asks for {name}, expected"):
        import_faces("ganimation", root, tmp_path / "out", SMALL, progress=False)


# -- every form, damaged in every way that it can be ---------------------------------------------------------------

FORMS = ("table", "openface", "pyfeat", "disfa", "bp4d", "ckplus", "rafd", "ganimation")
WITH_TEXT = tuple(form for form in FORMS if form != "rafd")


def sound_tree(form: str, root: Path) -> Path:
    """A small tree of a form with nothing wrong; its last labelled image is no neutral one."""
    if form == "table":
        table_tree(root, [f"photos/{i}.png,p{i % 2},,{i / 2},{5 - i / 2}" for i in range(8)])
    elif form == "disfa":
        disfa_tree(root)
    elif form == "bp4d":
        bp4d_tree(root)
    elif form == "ckplus":
        ckplus_tree(root)
    elif form == "ganimation":
        ganimation_tree(root, {f"N_{i}": np.linspace(0, i, 17) for i in range(3)})
    for i in range(1, 4):
        if form == "openface":
            picture(root / f"photos/{i:06d}.jpg")
            write(root / f"processed/{i:06d}.csv", "\n".join(openface_row(AU01_r=i / 2)) + "\n")
        elif form == "pyfeat":
            picture(root / f"photos/{i:06d}.jpg")
            rows = [f"0.99,0.{k},0.5,photos/{k:06d}.jpg\n" for k in range(1, 4)]
            write(root / "fex.csv", "".join(["FaceScore,AU01,AU12,input\n", *rows]))
        elif form == "rafd":
            picture(root / f"Rafd090_{i:02d}_Caucasian_female_happy_frontal.jpg")
    return root


def labels_of(form: str, root: Path, out: Path) -> tuple[dict[str, dict[str, float | None]], Report]:
    """Labels by AU by image, None where one is missing; and the report."""
    _, report, au = bring_in(form, root, out)
    return {
        image: {name: None if missing(value) else value for name, value in labels.items()}
        for image, labels in au.items()
    }, report


def texts(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.suffix in (".csv", ".txt"))


@pytest.mark.parametrize("form", FORMS)
def test_a_truncated_image(tmp_path, form):
    root = sound_tree(form, tmp_path / "in")
    sound, _ = labels_of(form, root, tmp_path / "sound")
    image = sorted(sound)[-1]
    write(root / image, (root / image).read_bytes()[:70])
    found, report = labels_of(form, root, tmp_path / "out")
    assert found == {other: labels for other, labels in sound.items() if other != image}
    assert places(report, "image that cannot be used") == [(image, 0)]


@pytest.mark.parametrize("form", FORMS)
def test_links_that_loop_or_lead_out(tmp_path, form):
    root, outside = sound_tree(form, tmp_path / "in"), picture(tmp_path / "private/secret.png", 255)
    sound, before = labels_of(form, root, tmp_path / "sound")
    folder = (root / sorted(sound)[-1]).parent
    (folder / "round").symlink_to(root, target_is_directory=True)
    (folder / "self.png").symlink_to(folder / "self.png")
    (folder / "secret.png").symlink_to(outside)
    found, report = labels_of(form, root, tmp_path / "out")
    assert found == sound
    assert report.counts() == before.counts() | {
        "left out: link to a folder, not followed": 1,
        "left out: neither a file nor a folder, or a broken link": 1,
        "left out: link that leads out of the folder": 1,
    }


@pytest.mark.parametrize("form", FORMS)
def test_names_in_the_other_case(tmp_path, form):
    root = sound_tree(form, tmp_path / "in")
    sound, before = labels_of(form, root, tmp_path / "sound")
    for path in sorted(root.rglob("*"), key=lambda path: -len(path.parts)):
        path.rename(path.with_name(path.name.swapcase()))
    found, report = labels_of(form, root, tmp_path / "out")
    assert {image.swapcase(): labels for image, labels in found.items()} == sound
    assert report.counts() == before.counts()


@pytest.mark.parametrize("form", WITH_TEXT)
@pytest.mark.parametrize("way", ["CRLF", "mark", "UTF-16", "decimal commas"])
def test_text_as_other_programs_write_it(tmp_path, form, way):
    root = sound_tree(form, tmp_path / "in")
    sound, before = labels_of(form, root, tmp_path / "sound")
    for path in texts(root):
        text = path.read_text()
        if way == "CRLF":
            text = text.replace("\n", "\r\n")
        elif way == "decimal commas":
            text = re.sub(r"(?<=\d)\.(?=\d)", ",", text.replace(",", ";"))
        write(path, text.encode({"mark": "utf-8-sig", "UTF-16": "utf-16"}.get(way, "utf-8")))
    found, report = labels_of(form, root, tmp_path / "out")
    assert found == sound and report.counts() == before.counts()


@pytest.mark.parametrize("form", WITH_TEXT)
def test_text_in_an_unknown_encoding_gives_no_label(tmp_path, form):
    root = sound_tree(form, tmp_path / "in")
    sound, _ = labels_of(form, root, tmp_path / "sound")
    for k, path in enumerate(texts(root)):
        content = path.read_bytes()
        write(path, content + "Zoë\n".encode("latin-1"))
        try:
            found, report = labels_of(form, root, tmp_path / f"out{k}")
        except ValueError as error:  # the only label file
            assert "found bytes that are not UTF-8" in str(error)
        else:
            told = (path.relative_to(root).as_posix(), 0)
            assert places(report, "label file that cannot be read") == [told]
            assert found != sound
            for image, labels in found.items():
                assert all(value in (None, sound[image][name]) for name, value in labels.items())
        write(path, content)


@pytest.mark.parametrize("form", FORMS)
def test_an_image_without_a_label(tmp_path, form):
    root = sound_tree(form, tmp_path / "in")
    sound, before = labels_of(form, root, tmp_path / "sound")
    stranger = picture((root / sorted(sound)[-1]).with_name("stranger.png")).relative_to(root).as_posix()
    found, report = labels_of(form, root, tmp_path / "out")
    assert found == sound
    told = places(report, "image without a label")
    assert sorted(told) == sorted([*places(before, "image without a label"), (stranger, 0)])


@pytest.mark.parametrize("form", WITH_TEXT)
def test_a_label_without_its_image(tmp_path, form):
    root = sound_tree(form, tmp_path / "in")
    sound, _ = labels_of(form, root, tmp_path / "sound")
    image = sorted(sound)[-1]
    (root / image).unlink()
    found, report = labels_of(form, root, tmp_path / "out")
    [(file, line)] = places(report, "label without an image")
    assert (root / file).is_file() and line >= 1
    assert {k: v for k, v in sound.items() if k in found} == found and len(sound) - len(found) in (1, 2)  # CK+: 2


@pytest.mark.parametrize(
    ("form", "file", "row", "reason"),
    [
        ("table", "labels.csv", "photos/7.png,p1,,0,0", "second label of an image"),
        ("disfa", "ActionUnit_Labels/SN002/SN002_au26.txt", "4,2", "second label of a frame"),
        ("bp4d", "AUCoding/AU_OCC/F001_T1.csv", "3,0,0,0", "second label of a frame"),
        ("bp4d", "AUCoding/AU_INT/AU06/F001_T1_AU06.csv", "2,5", "second label of a frame"),
        ("ckplus", "FACS/S010/002/S010_002_00000002_facs.txt", "12 1", "second label of an action unit"),
        ("ganimation", "train_ids.csv", "N_0.jpg", "second split of an image"),
    ],
)
def test_a_second_label_is_told_with_its_line_and_the_first_one_kept(tmp_path, form, file, row, reason):
    root = sound_tree(form, tmp_path / "in")
    sound, before = labels_of(form, root, tmp_path / "sound")
    write(root / file, (root / file).read_text() + row + "\n")
    found, report = labels_of(form, root, tmp_path / "out")
    assert found == sound and places(report, reason) == [(file, len((root / file).read_text().splitlines()))]
    assert report.counts() == before.counts() | {f"left out: {reason}": 1}


@pytest.mark.parametrize(
    ("form", "file", "what"),
    [
        ("disfa", "ActionUnit_Labels/SN001/SN001_au12.txt", "label file of an action unit"),
        ("disfa", "Images/LeftVideoSN001_comp/00001.jpg", "image of a frame"),
        ("bp4d", "AUCoding/AU_OCC/F001_T1.csv", "occurrence file of a film"),
        ("bp4d", "AUCoding/AU_INT/AU06/F001_T1_AU06.csv", "intensity file of an action unit"),
        ("bp4d", "2D+3D/F001/T1/0002.jpg", "image of a frame"),
        ("ckplus", "FACS/S010/002/S010_002_00000002_facs.txt", "label file of a frame"),
        ("ckplus", "cohn-kanade-images/S005/001/S005_001_00000003.png", "image of a frame"),
        ("ganimation", "aus_openface.pkl", "aus_openface.pkl"),
    ],
)
def test_a_second_file_is_told_and_the_first_one_kept(tmp_path, form, file, what):
    root = sound_tree(form, tmp_path / "in")
    sound, _ = labels_of(form, root, tmp_path / "sound")
    write(root / "z-copy" / file, (root / file).read_bytes())
    found, report = labels_of(form, root, tmp_path / "out")
    assert found == sound and places(report, f"second {what}") == [(f"z-copy/{file}", 0)]


# -- the writer ----------------------------------------------------------------------------------------------------


def big_tree(root: Path, n: int = 40) -> Path:
    for i in range(n):
        picture(root / f"person{i % 10}/{i}.png", 5 * i)
    write(root / "labels.csv", "image,AU1\n" + "".join(f"person{i % 10}/{i}.png,{i % 6}\n" for i in range(n)))
    return root


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def test_people_are_drawn_into_splits_and_stand_in_one_only(tmp_path):
    data, _, _ = bring_in("table", big_tree(tmp_path / "in"), tmp_path / "out", ImportConfig(16, val=0.2, test=0.3))
    people = {split: set(data.subject[data.split == split].tolist()) for split in ("train", "val", "test")}
    assert [len(people[split]) for split in ("train", "val", "test")] == [5, 2, 3]  # folders are people
    other, _, _ = bring_in("table", tmp_path / "in", tmp_path / "o2", ImportConfig(16, val=0.2, test=0.3, seed=1))
    assert (other.split != data.split).any()


def test_several_processes_write_the_same_bytes(tmp_path, monkeypatch):
    big_tree(tmp_path / "in", 70)  # more than the 64 that are done without starting processes
    monkeypatch.setattr(writing, "chunk_size", lambda config: 8)
    import_faces("table", tmp_path / "in", tmp_path / "one", SMALL, progress=False)
    import_faces("table", tmp_path / "in", tmp_path / "two", ImportConfig(16, processes=2), progress=False)
    assert files(tmp_path / "one") == files(tmp_path / "two")


def interrupted(monkeypatch: pytest.MonkeyPatch, n: int, kind: str, root: Path, out: Path) -> None:
    """An import that is stopped, as by Ctrl-C, after n chunks."""
    read, reads = writing.read_chunk, []

    def killed(job):
        if len(reads) == n:
            raise KeyboardInterrupt
        reads.append(job)
        return read(job)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(writing, "read_chunk", killed)
        import_faces(kind, root, out, SMALL, progress=False)


@pytest.mark.parametrize("damage", ["none", "torn journal", "torn pixels", "flipped bit"])
def test_an_interrupted_import_goes_on_and_ends_with_the_same_bytes(tmp_path, monkeypatch, damage):
    root = big_tree(tmp_path / "in")
    write(root / "person3/3.png", b"no image")
    monkeypatch.setattr(writing, "chunk_size", lambda config: 8)
    import_faces("table", root, tmp_path / "whole", SMALL, progress=False)
    out = tmp_path / "out"
    interrupted(monkeypatch, 3, "table", root, out)
    assert not (out / "meta.json").exists() and (out / "import.jsonl").exists()
    if damage == "torn journal":
        with (out / "import.jsonl").open("r+b") as file:
            file.truncate(file.seek(0, 2) - 5)
    elif damage != "none":
        with (out / "images.npy.partial").open("r+b") as file:
            end = file.seek(0, 2)
            if damage == "torn pixels":
                file.truncate(end - 5)
            else:
                file.seek(end - 2000)
                file.write(b"\xff")
    read, reads = writing.read_chunk, []
    monkeypatch.setattr(writing, "read_chunk", lambda job: reads.append(job) or read(job))
    report = import_faces("table", root, out, SMALL, progress=False)
    assert len(reads) == (2 if damage == "none" else 3)  # of five chunks; a damaged one is read again
    assert files(out) == files(tmp_path / "whole")
    assert places(report, "image that cannot be used") == [("person3/3.png", 0)]


def test_a_finished_import_is_left_as_it_is_and_another_one_refused(tmp_path):
    root, out = big_tree(tmp_path / "in"), tmp_path / "out"
    write(root / "person3/3.png", b"no image")
    first = import_faces("table", root, out, SMALL, progress=False)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    again = import_faces("table", root, out, SMALL, progress=False)
    assert (
        again.cases == first.cases
        and before.items()
        >= {path: path.stat().st_mtime_ns for path in out.iterdir() if path.suffix != ".lock"}.items()
    )
    with pytest.raises(ValueError, match="found another data set, expected a new or an empty folder"):
        import_faces("table", root, out, ImportConfig(24), progress=False)


def test_where_nothing_can_be_imported_the_reasons_are_told(tmp_path):
    root = table_tree(tmp_path / "in", ["photos/88.png,a,,1,1"])
    with pytest.raises(ValueError, match=r"found no labelled image of the form table.* label without an image"):
        import_faces("table", root, tmp_path / "out", SMALL, progress=False)
    with pytest.raises(NotADirectoryError, match="found no folder"):
        import_faces("table", root / "labels.csv", tmp_path / "out", SMALL, progress=False)


def test_the_command_prints_what_was_imported_and_what_was_left_out(tmp_path, capsys):
    root = table_tree(tmp_path / "in", ["photos/0.png,a,,1,1", "photos/1.png,b,,1,9"])
    cli.main(["import", "table", str(root), str(tmp_path / "out"), "--size", "16"])
    out = capsys.readouterr().out
    assert f"{tmp_path / 'out'}: 2 images, AU1, AU12\n       2  cut: centre square\n" in out
    assert "1  label missing: label that is no intensity  (labels.csv line 3: AU12: found '9', expected 0 to 5)" in out
    assert "6  left out: image without a label" in out


def test_workers_start_without_torch():
    code = "import sys, expr_lib.importers.write; print([m for m in ('torch', 'pandas', 'dlib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_report_shows_counts_and_the_first_place():
    report = Report()
    for line in (4, 9):
        report.missing("odd label", "a.csv", line, "found 'x'")
    assert report.lines() == ["       2  label missing: odd label  (a.csv line 4: found 'x')"]


def test_names_that_differ_only_in_case_are_told(tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / "A.png")
    if len(list(tmp_path.iterdir())) < 2:
        pytest.skip("this file system does not tell a.png from A.png")
    report = Report()
    assert list(Tree(tmp_path, report).images()) == ["A.png"]
    assert places(report, "name that differs from another only in case") == [("a.png", 0)]
