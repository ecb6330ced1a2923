"""Films in place of folders of frames, in every form that has frames; and `expr-lib animate`."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from test_align import points_at as landmarks_at
from test_cli import fails
from test_importers import bring_in, files, interrupted, picture, places, write
from test_layouts import fex, openface_cells, points_at, table, takes

from expr_lib import checkpoint, films
from expr_lib.apps import cli
from expr_lib.errors import InputError
from expr_lib.images import write_png
from expr_lib.importers import align
from expr_lib.importers import write as writing
from expr_lib.importers.align import CANONICAL
from expr_lib.importers.write import ImportConfig, import_faces
from expr_lib.model import ModelConfig, Swapper
from expr_lib.swap import driven, smoothed

av = pytest.importorskip("av")
SMALL = ImportConfig(size=16, processes=1)
CODECS = {".mp4": "libx264", ".mov": "libx264", ".mkv": "libx264", ".webm": "libvpx-vp9", ".avi": "mpeg4"}


def film(
    path: Path, shades: list[int], size: tuple[int, int] = (64, 48), times: list[int] | None = None, codec: str = ""
) -> Path:
    """A film of frames of one colour each, so that they can be told apart; `times` are in hundredths of a second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec or CODECS[path.suffix.lower()], rate=25, width=size[0], height=size[1])
        stream.pix_fmt, stream.bit_rate = "yuv420p", 2_000_000
        if times:
            stream.codec_context.time_base = Fraction(1, 100)
        for k, shade in enumerate(shades):
            image = np.full((size[1], size[0], 3), shade, np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if times:
                frame.pts, frame.time_base = times[k], Fraction(1, 100)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def shades(images: np.ndarray) -> list[int]:
    return [round(float(image.mean()) / 10) * 10 for image in images]


STEPS = [20, 60, 100, 140, 180, 220]


# -- reading -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", films.ENDINGS)
def test_every_container_gives_its_frames_in_the_order_in_which_they_are_shown(tmp_path, ending):
    path = film(tmp_path / f"film{ending}", STEPS)
    assert films.count_frames(path) == 6 and films.rate_of(path) == 25
    assert shades(list(films.frames(path))) == STEPS
    frames = [films.read_picture(path / f"{n:06d}.png") for n in (2, 2, 5, 1)]  # again, on, and back
    assert shades(frames) == [60, 60, 180, 20]


def test_a_variable_frame_rate_moves_no_frame(tmp_path):
    path = film(tmp_path / "film.mkv", STEPS, times=[0, 4, 8, 90, 94, 250])
    assert films.count_frames(path) == 6 and shades(list(films.frames(path))) == STEPS


def test_a_folder_of_images_counts_as_people_count(tmp_path):
    for n, shade in ((10, 100), (2, 20), (1, 10)):
        picture(tmp_path / f"img_{n}.png", shade)
    write(tmp_path / "notes.txt", "no image")
    assert shades(list(films.frames(tmp_path))) == [10, 20, 100]


def damaged(tmp_path: Path, how: str) -> Path:
    path = tmp_path / "film.mp4"
    if how == "no index":
        whole = film(path, STEPS).read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    elif how == "no picture":
        with av.open(str(path), "w") as container:
            stream = container.add_stream("aac", rate=44100)
            sound = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
            sound.sample_rate = 44100
            container.mux([*stream.encode(sound), *stream.encode()])
    elif how == "no frame":
        path = tmp_path / "film.avi"
        whole = film(path, [9]).read_bytes()
        path.write_bytes(whole[: whole.index(b"movi") + 4])
    elif how == "absurd size":
        path = tmp_path / "film.avi"
        whole = film(path, STEPS, codec="rawvideo").read_bytes()
        at = whole.index(b"strf") + 12  # width and height of the bitmap header
        path.write_bytes(whole[:at] + (12_000).to_bytes(4, "little") * 2 + whole[at + 8 :])
    elif how == "playlist":
        write(path, "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n")
    elif how == "text":
        write(path, "no film\n" * 100)
    else:
        write(path, "")
    return path


BAD = {
    "no index": "damaged film",
    "no picture": "found no video stream, expected one",
    "no frame": "found no frame",
    "absurd size": "found frames of 12000 x 12000 pixels, expected 16 x 16 to 100,000,000 pixels",
    "playlist": "damaged film",
    "text": "damaged film",
    "empty": "damaged film",
}


@pytest.mark.parametrize(("how", "told"), BAD.items())
def test_what_is_no_film_is_told_in_one_line(tmp_path, capfd, how, told):
    path = damaged(tmp_path, how)
    for read in (films.count_frames, lambda path: list(films.frames(path))):
        with pytest.raises((ValueError, OSError), match=told) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_a_film_that_is_cut_off_gives_the_frames_that_are_there(tmp_path):
    path = film(tmp_path / "film.mkv", STEPS * 5)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 9 // 10])
    n, told = films.count_frames(path), []
    assert 10 < n < 30
    assert shades(list(films.frames(path, told.append))) == (STEPS * 5)[: n - len(told)]


# -- films in place of frames --------------------------------------------------------------------------------------


def disfa_labels(root: Path, numbers: range, who: str = "SN001") -> None:
    write(root / f"ActionUnit_Labels/{who}/{who}_au12.txt", "".join(f"{n},{k % 6}\n" for k, n in enumerate(numbers)))


def test_disfa_films_are_read_beside_their_labels(tmp_path):
    root = tmp_path / "in"
    film(root / "Videos_LeftCamera/LeftVideoSN001_comp.avi", STEPS)
    film(root / "Videos_RightCamera/RightVideoSN001_comp.avi", STEPS)
    film(root / "Videos_LeftCamera/LeftVideoSN002_comp.avi", STEPS)
    for who in ("SN001", "SN002"):
        disfa_labels(root, range(1, 7), who)
    data, report, au = bring_in("disfa", root, tmp_path / "out")
    assert shades(data.images) == STEPS * 2 and [x["AU12"] for x in au.values()] == [0, 1, 2, 3, 4, 5] * 2
    assert list(au)[1] == "Videos_LeftCamera/LeftVideoSN001_comp.avi/000002.png"
    assert {row[1:] for row in takes(tmp_path / "out")} == {("SN001", "0"), ("SN002", "1")}
    assert places(report, "second film of a recording") == [("Videos_RightCamera/RightVideoSN001_comp.avi", 0)]


def test_where_the_frames_are_there_as_images_the_film_is_not_read(tmp_path):
    root = tmp_path / "in"
    film(root / "Videos/LeftVideoSN001_comp.avi", STEPS)
    disfa_labels(root, range(1, 7))
    for n in range(1, 7):
        picture(root / f"Images/SN001/{n:05d}.png", 10 * n)
    data, report, _ = bring_in("disfa", root, tmp_path / "out")
    assert shades(data.images) == [10, 20, 30, 40, 50, 60]
    assert report.counts() == {
        "note: film whose frames are there as images, not read": 1,
        "note: image that a program made of another, not used": 1,
    }


COUNTED = {
    "from 0": (range(6), STEPS, ["table that counts the frames of its film from 0, not from 1"], 0),
    "one row more": (range(1, 8), STEPS, ["table with one row more than its film has frames"], 1),
    "one row less": (range(1, 6), STEPS[:5], ["table with one row less than its film has frames"], 0),
    "from 1": (range(1, 7), STEPS, [], 0),
}


@pytest.mark.parametrize(("numbers", "expected", "notes", "lost"), COUNTED.values(), ids=COUNTED)
@pytest.mark.parametrize("form", ["disfa", "openface", "bp4d"])
def test_a_table_that_is_off_by_one_is_noticed(tmp_path, form, numbers, expected, notes, lost):
    root = tmp_path / "in"
    if form == "disfa":
        film(root / "LeftVideoSN001_comp.avi", STEPS)
        disfa_labels(root, numbers)
    elif form == "openface":
        film(root / "film.mp4", STEPS, (240, 200))
        write(root / "film.csv", table(*(openface_cells(frame=n) for n in numbers)))
    else:
        film(root / "F001/T1.avi", STEPS)
        write(root / "AU_OCC/F001_T1.csv", "0,12\n" + "".join(f"{n},1\n" for n in numbers))
    data, report, _ = bring_in(form, root, tmp_path / "out")
    assert shades(data.images) == expected
    assert [what for kind, what, *_ in report.cases if "row" in what or "counts" in what] == notes
    assert report.counts().get("left out: label without an image", 0) == lost


@pytest.mark.parametrize("first", [0, 1])
def test_pyfeat_finds_the_film_that_the_column_input_names(tmp_path, first):
    root = tmp_path / "in"
    film(root / "videos/anna.mp4", STEPS, (240, 200))
    film(root / "videos/ben.mp4", STEPS[::-1], (240, 200))
    for who in ("anna", "ben"):
        rows = [fex(points_at(), AU12=n / 10, input=f"/data/{who}.mp4", frame=n + first) for n in range(6)]
        write(root / f"tables/{who}.csv", table(*rows, between=","))
    data, report, au = bring_in("pyfeat", root, tmp_path / "out")
    assert shades(data.images) == STEPS + STEPS[::-1]
    assert [x["AU12"] for x in au.values()] == pytest.approx([n / 2 for n in range(6)] * 2)
    note = {"note: table that counts the frames of its film from 1, not from 0": 2}
    assert report.counts() == (note if first else {})
    assert data.meta["config"]["cut"] == {"by landmarks": 12, "centre square": 0}


def test_films_and_folders_without_labels_are_takes_whose_labels_are_missing(tmp_path, monkeypatch):
    root = tmp_path / "in"
    film(root / "anna.mp4", STEPS)
    for k, shade in enumerate(STEPS):
        picture(root / f"ben/{k}.png", shade)
    monkeypatch.setattr("expr_lib.importers.unlabelled.MOST", 3)
    data, report, _ = bring_in("unlabelled", root, tmp_path / "out")
    assert np.isnan(data.au).all() and data.au.shape == (6, 17) and shades(data.images) == STEPS[::2] * 2
    assert [row[1:] for row in takes(tmp_path / "out")] == [("anna.mp4", "0")] * 3 + [("ben", "1")] * 3
    told = places(report, "take of which not all images are used")
    assert sorted(file for file, _ in told) == ["anna.mp4", "ben"]


def test_the_pose_in_each_frame_of_a_film_is_recorded_where_landmarks_allow(tmp_path):
    root, angles = tmp_path / "in", (0, 3, 20, 3)
    film(root / "anna.mp4", STEPS, (240, 160))
    rows = [openface_cells(points=landmarks_at(CANONICAL * 90 + (70, 30), yaw), frame=n)
            for n, yaw in enumerate(angles, 1)]  # fmt: skip
    write(root / "anna.csv", table(*rows))
    data, *_ = bring_in("openface", root, tmp_path / "out")
    assert data.pose[:, 0] == pytest.approx(angles, abs=1.5) and len(set(data.take)) == 1
    assert data.near(np.array([0, 0, 1]), np.array([1, 2, 3])).tolist() == [True, False, True]
    write(root / "anna.csv", table(*[{k: v for k, v in row.items() if not k.startswith("x_")} for row in rows]))
    data, *_ = bring_in("openface", root, tmp_path / "plain")
    assert np.isnan(data.pose).all() and data.near(np.arange(4), np.arange(4)[::-1]).all()


def test_two_people_in_one_film_are_cut_out_of_the_same_frames(tmp_path):
    root = tmp_path / "in"
    film(root / "film.mov", STEPS, (360, 200))
    rows = [openface_cells(points=points_at(x=70 + 120 * k), frame=n, face_id=k) for n in (1, 2, 4) for k in (0, 1)]
    write(root / "film.csv", table(*rows))
    data, _, _ = bring_in("openface", root, tmp_path / "out")
    assert shades(data.images) == [20, 20, 60, 60, 140, 140]
    assert [row[1:] for row in takes(tmp_path / "out")] == [("film 0", "0"), ("film 1", "1")] * 3


@pytest.mark.parametrize("how", ["details", "another"])
def test_the_film_on_which_openface_drew_is_left_alone(tmp_path, how):
    root = tmp_path / "in"
    film(root / "processed/film.avi", [250] * 6, (240, 200))
    write(root / "processed/film.csv", table(*(openface_cells(frame=n) for n in range(1, 7))))
    if how == "details":
        write(
            root / "processed/film_of_details.txt", "Input:/me/film.mp4\nOutput csv:film.csv\nOutput video:film.avi\n"
        )
        film(root / "processed/film.mp4", STEPS, (240, 200))
    else:
        film(root / "videos/film.mp4", STEPS, (240, 200))
    data, report, _ = bring_in("openface", root, tmp_path / "out")
    assert shades(data.images) == STEPS
    assert report.counts() == {"note: image that a program made of another, not used": 1}


def test_a_plain_table_names_frames_of_films(tmp_path):
    root = tmp_path / "in"
    film(root / "Sessions/1/S001-001.avi", STEPS)
    write(root / "labels.csv", "image,frame,AU12\n" + "".join(f"Sessions/1/S001-001.avi,{n},{n}\n" for n in (1, 3, 9)))
    data, report, au = bring_in("table", root, tmp_path / "out")
    assert shades(data.images) == [20, 100] and [x["AU12"] for x in au.values()] == [1, 3]
    assert {row[1:] for row in takes(tmp_path / "out")} == {("Sessions/1/S001-001.avi", "0")}
    assert places(report, "label without an image") == [("labels.csv", 4)]
    assert report.counts()["note: film that has frames without a label"] == 1


def test_a_damaged_film_costs_its_own_frames_only(tmp_path):
    root = tmp_path / "in"
    for who in ("SN001", "SN002"):
        film(root / f"LeftVideo{who}_comp.avi", STEPS)
        disfa_labels(root, range(1, 7), who)
    path = root / "LeftVideoSN001_comp.avi"
    path.write_bytes(path.read_bytes()[:100])
    data, report, _ = bring_in("disfa", root, tmp_path / "out")
    assert shades(data.images) == STEPS and len(places(report, "label without an image")) == 6
    assert places(report, "film that cannot be read") == [("LeftVideoSN001_comp.avi", 0)]


def test_an_interrupted_import_of_films_ends_with_the_same_bytes(tmp_path, monkeypatch):
    root = tmp_path / "in"
    for who in ("SN001", "SN002"):
        film(root / f"LeftVideo{who}_comp.avi", STEPS * 4)
        disfa_labels(root, range(1, 25), who)
    monkeypatch.setattr(writing, "chunk_size", lambda config: 7)
    import_faces("disfa", root, tmp_path / "whole", SMALL, progress=False)
    interrupted(monkeypatch, 4, "disfa", root, tmp_path / "out")
    films.Playing.path = Path()  # another process
    import_faces("disfa", root, tmp_path / "out", SMALL, progress=False)
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_without_pyav_one_line_names_the_extra_and_images_are_still_imported(tmp_path, monkeypatch):
    root = tmp_path / "in"
    film(root / "LeftVideoSN001_comp.avi", STEPS)
    disfa_labels(root, range(1, 7))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match=r'needs PyAV: pip install "expr-lib\[films\]"$'):
        import_faces("disfa", root, tmp_path / "out", SMALL, progress=False)
    picture(root / "Images/SN001/1.png", 80)
    _, report, au = bring_in("disfa", root, tmp_path / "out")
    assert list(au) == ["Images/SN001/1.png"]
    assert places(report, "film that needs PyAV") == [("LeftVideoSN001_comp.avi", 0)]


# -- expr-lib animate ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, str]:
    """Tiny swappers of both generations that have learnt nothing."""
    found = {}
    for generator in ("drawn", "moved"):
        torch.manual_seed(0)
        swapper = Swapper(ModelConfig(size=64, width=16, width_r=16, generator=generator))
        path = tmp_path_factory.mktemp("weights") / f"{generator}.safetensors"
        checkpoint.save(path, checkpoint.module_tensors("ema", swapper), checkpoint.describe(swapper))
        found[generator] = str(path)
    return found


@pytest.fixture
def still(tmp_path) -> Path:
    image = np.random.default_rng(0).integers(0, 256, (97, 131, 3), np.uint8)
    return write_png(tmp_path / "still.png", image)


@pytest.mark.parametrize("generator", ["drawn", "moved"])
@pytest.mark.parametrize("ending", films.WRITTEN)
def test_a_film_drives_a_still_and_a_folder_does_so_too(tmp_path, checkpoints, still, ending, generator, capsys):
    source = film(tmp_path / "film.mkv", STEPS * 4)
    for k, image in enumerate(films.frames(source)):
        write_png(tmp_path / f"folder/{k}.png", image)
    for driver in (source, tmp_path / "folder"):
        out = tmp_path / f"{driver.stem}{ending}"
        cli.main(["animate", str(still), str(driver), "-o", str(out), "--checkpoint", checkpoints[generator]])
        assert (
            f"{out}: still.png with the expressions of {driver.name}, 24 frames, 25 a second" in capsys.readouterr().out
        )
        if ending == ".mp4":
            frames = list(films.frames(out))
        else:
            with Image.open(out) as opened:
                shown = [(np.array(x.convert("RGB")), x.info["duration"]) for x in ImageSequence.Iterator(opened)]
            frames = [image for image, _ in shown]
            assert ending == ".webp" or sum(time for _, time in shown) == 24 * 40
        side = 64 if generator == "drawn" else 96  # the still's own, but even
        assert frames[0].shape == (side, side, 3) and len(frames) <= 24
        assert len(frames) == 24 or ending != ".mp4"  # in a GIF or WebP equal frames are one
    assert not list(tmp_path.glob(".*.partial"))


def test_a_fast_film_is_thinned_for_a_gif(tmp_path):
    images = [np.full((16, 16, 3), 4 * k, np.uint8) for k in range(60)]
    assert films.write_film(tmp_path / "fast.gif", images, Fraction(60), images) == 60
    with Image.open(tmp_path / "fast.gif") as opened:
        assert opened.n_frames == 20 and opened.info["duration"] == 50  # every third


def test_inputs_are_shown_on_the_left(tmp_path, checkpoints, still):
    source = film(tmp_path / "film.mkv", STEPS)
    cli.main(["animate", str(still), str(source), "-o", str(tmp_path / "o.mp4"), "--inputs", "--size", "32",
              "--checkpoint", checkpoints["moved"]])  # fmt: skip
    frames = np.stack(list(films.frames(tmp_path / "o.mp4")))
    assert frames.shape == (6, 32, 64, 3) and shades(frames[:, :, :30]) == STEPS


def test_the_filter_is_a_centred_gaussian():
    impulse = torch.zeros(41, 2, 3)
    impulse[20] = 1
    t = torch.arange(-20.0, 21)
    for sigma in (1.0, 2.5):
        bell = torch.exp(-(t**2) / (2 * sigma**2)) * (t.abs() <= np.ceil(3 * sigma))
        expected = (bell / bell.sum())[:, None, None].expand(41, 2, 3)
        torch.testing.assert_close(smoothed(impulse, sigma), expected)
    torch.testing.assert_close(smoothed(torch.full((5, 2, 3), 0.3), 4.0), torch.full((5, 2, 3), 0.3))  # ends included
    assert smoothed(impulse, 0) is impulse


def test_relative_motion_begins_at_the_still_and_absolute_motion_forgets_it():
    swapper = Swapper(ModelConfig(size=32, width=16, width_r=16, generator="drawn")).eval()
    own, frames = (torch.rand(n, swapper.config.n_aus, swapper.config.d) * 0.4 for n in (1, 5))
    neutral = int(swapper.intensities(frames).sum(1).argmin())
    relative = driven(swapper, own, frames)
    torch.testing.assert_close(relative[neutral], own[0])
    torch.testing.assert_close(relative - relative[neutral], frames - frames[neutral])
    assert driven(swapper, own, frames, absolute=True) is frames


@pytest.mark.parametrize("phase", ["reading", "animating"])
@pytest.mark.skipif(os.name != "posix", reason="needs signals")
def test_ctrl_c_leaves_a_film_that_plays(tmp_path, checkpoints, still, phase):
    source, out = film(tmp_path / "film.mkv", STEPS * 300, (512, 512)), tmp_path / "out.mp4"
    command = [sys.executable, "-m", "expr_lib.apps.cli", "animate", str(still), str(source), "-o", str(out)]
    if phase == "animating":
        command += ["--inputs"]  # slower
    process = subprocess.Popen([*command, "--checkpoint", checkpoints["moved"]], stderr=subprocess.PIPE)
    told = b""
    while not re.search(rf"{phase}:.* [1-9]\d*/?".encode(), told):
        told += os.read(process.stderr.fileno(), 1000)
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=300)
    assert process.returncode == 130 and rest.endswith(b"expr-lib: stopped\n") and b"Traceback" not in rest
    assert 1 <= len(list(films.frames(out))) < 1800


@pytest.mark.parametrize("how", BAD)
def test_a_bad_film_is_one_line(tmp_path, still, how, capsys):
    path = damaged(tmp_path, how)
    assert str(path) in fails(capsys, "animate", str(still), str(path), "-o", str(tmp_path / "out.gif"))
    assert not (tmp_path / "out.gif").exists()


def test_bad_options_are_one_line(tmp_path, still, capsys, monkeypatch):
    source = film(tmp_path / "film.mkv", STEPS)
    assert "expected one of .mp4, .gif, .webp" in fails(capsys, "animate", str(still), str(source), "-o", "o.avi")
    assert "--smooth: found -1, expected 0 to 100" in fails(capsys, "animate", str(still), str(source), "--smooth=-1")
    (tmp_path / "empty").mkdir()
    told = fails(capsys, "animate", str(still), str(tmp_path / "empty"), "-o", str(tmp_path / "o.gif"))
    assert "found no frame, expected at least one" in told
    monkeypatch.setitem(sys.modules, "av", None)
    told = fails(capsys, "animate", str(still), str(source), "-o", str(tmp_path / "o.gif"))
    assert told == 'reading and writing films needs PyAV: pip install "expr-lib[films]"'


@pytest.mark.parametrize("found", [1, 0])
def test_faces_in_photographs_are_found_once(tmp_path, checkpoints, still, found, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(align, "find_faces", lambda photo: calls.append(photo.shape) or [points_at(60, 20, 10)] * found)
    write_png(tmp_path / "still.png", np.full((97, 131, 3), 90, np.uint8))
    source = film(tmp_path / "film.mkv", STEPS, (120, 100))
    command = ["animate", str(still), str(source), "-o", str(tmp_path / "o.mp4"), "--photographs"]
    command += ["--checkpoint", checkpoints["moved"]]
    if found:
        cli.main([*command, "--largest"])
        made = list(films.frames(tmp_path / "o.mp4"))
        assert calls == [(96, 130, 3), (100, 120, 3)] and [x.shape for x in made] == [(96, 130, 3)] * 6
        beside = np.abs(made[-1][:, 100:].astype(int) - 90)  # the face reaches to column 80
        assert beside.max() <= 3  # the codec's
        cli.main([*command, "--size", "120", "--inputs"])
        assert next(films.frames(tmp_path / "o.mp4")).shape == (88, 88 + 120, 3)
    else:
        assert f"{still}: found no face" in fails(capsys, *command)
