"""Trajectories: tracks against formulas, scenes' tables, drawings compared by their data, the claims."""

import dataclasses
import doctest
import json
import math
import os
import re
import stat

import numpy as np
import pytest

import fastopt
from fastopt import cli, trajectories
from fastopt.errors import BackendUnavailable
from fastopt.palette import rule_look
from fastopt.trajectories import claims, descent, drawing, objectives, scenes

from .pages import ROOT
from .pages import page as page_of

OBJECTIVES = [trajectories.BEALE, trajectories.SADDLE, trajectories.RAVINE, scenes.linear_regression()[2]]


def needs_matplotlib():
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")


@pytest.fixture(scope="module")
def small():
    """A scene that is quick to draw."""
    return trajectories.ravine(("sgd", "momentum", "nadam"), steps=12)


# ---- data ----


@pytest.mark.parametrize("module", [trajectories, objectives, descent, scenes, drawing])
def test_examples_run(module):
    result = doctest.testmod(module)
    assert result.failed == 0 and (result.attempted or module is objectives)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: objective.name)
def test_gradients_are_those_of_the_losses(objective):
    points = np.random.default_rng(0).uniform(-2, 2, (20, 2))
    for k, h in enumerate(np.eye(2) * 1e-6):
        slope = (objective.loss(points + h) - objective.loss(points - h)) / 2e-6
        np.testing.assert_allclose(objective.gradient(points)[:, k], slope, rtol=1e-6, atol=1e-6)
    if objective.minimum is not None:
        assert abs(objective.gradient(np.array(objective.minimum))).max() < 1e-12
        assert abs(objective.loss(np.array(objective.minimum))) < 1e-12


@pytest.mark.parametrize("rule", trajectories.ELEMENTWISE)
def test_tracks_are_those_of_the_classes(rule):
    """Learning rates that are stepped together go where each goes alone."""
    lrs = (0.001, 0.01)
    together = trajectories.tracks(rule, trajectories.RAVINE, lrs, 7)
    for lr, track in zip(lrs, together, strict=True):
        point = np.array(trajectories.RAVINE.start)
        optimizer = descent.optimizer_class(rule)(point, lr=lr)
        assert [r.name for r in optimizer._owned.groups.rules] == [rule]
        for t in range(8):
            assert track.points[t].tolist() == point.tolist()
            assert track.losses[t] == trajectories.RAVINE.loss(point)
            optimizer.step(trajectories.RAVINE.gradient(point))
        assert track.look == rule_look(rule)


def test_arrival_is_for_good():
    points = np.array([[1.0, 0], [0, 0], [1, 0], [0, 1e-4], [0, 0]])
    track = trajectories.Track("", rule_look("sgd"), 0.1, points, points[:, 0], (0.0, 0.0))
    assert track.arrival() == 3 and track.arrival(1e-5) == 4 and track.arrival(2.0) == 0
    away = trajectories.Track("", rule_look("sgd"), 0.1, points[:3], points[:3, 0], (0.0, 0.0))
    assert away.arrival() is None
    assert trajectories.Track("", rule_look("sgd"), 0.1, points, points[:, 0]).arrival() is None


@pytest.mark.parametrize("rule", ["adam", "rmsprop"])
def test_the_best_learning_rate_arrives_first_of_those_that_stay_in_the_window(rule):
    best = trajectories.tuned(rule, trajectories.RAVINE, 300)
    every = trajectories.tracks(rule, trajectories.RAVINE, trajectories.LRS, 300)
    arrivals = {track.lr: track.arrival() for track in every if track.arrival() is not None}
    inside = [track.lr for track in every if trajectories.RAVINE.shows(track.points)]
    assert best.lr in inside and best.arrival() == min(arrivals[lr] for lr in inside if lr in arrivals)
    assert rule != "rmsprop" or min(arrivals.values()) < best.arrival()  # by leaps out of the window


def test_nag_is_the_literal_sequence():
    """v = momentum*v + lr*gradient(theta - momentum*v); theta -= v."""
    scene = trajectories.nag(steps=20)
    lr, momentum = scene.tracks[0].lr, 0.8
    for track, ahead in zip(scene.tracks, (0.0, momentum), strict=True):
        theta, v = np.array(scene.objective.start), np.zeros(2)
        for t in range(1, 21):
            v = momentum * v + lr * scene.objective.gradient(theta - ahead * v)
            theta = theta - v
            np.testing.assert_allclose(track.points[t], theta, rtol=1e-12, atol=1e-14)


def test_the_vectors_of_nag_add_up():
    scene = trajectories.nag()
    momentum, theta = (track.points for track in scene.tracks)
    for t in range(2, scene.steps + 1):
        leap, gradient, jump, correction = [arrow for arrow in scene.arrows if arrow.step == t]
        assert leap.begin == tuple(momentum[t - 1]) and gradient.end == tuple(momentum[t])
        assert leap.end == gradient.begin
        assert jump.begin == tuple(theta[t - 1]) and correction.end == tuple(theta[t])
        np.testing.assert_allclose(jump.end, correction.begin, rtol=1e-12)
        downhill = -scene.objective.gradient(np.array(correction.begin))
        np.testing.assert_allclose(np.subtract(correction.end, correction.begin), scene.tracks[1].lr * downhill)


def test_few_examples_fluctuate_and_annealing_calms():
    whole, ten, one, annealed = trajectories.fluctuation().tracks
    late = [float(track.losses[300:].mean()) for track in (whole, ten, one, annealed)]
    assert late[0] < 1e-9 < late[1] < late[2] and late[3] < late[2] / 3


def test_tables():
    scene = trajectories.saddle(("sgd", "rmsprop"), steps=100)
    rows = {row[0]: row[2] for row in scene.rows()}
    assert rows["sgd"] == "did not" and int(rows["rmsprop"]) < 10
    text = scene.table().splitlines()
    assert text[0] == "| optimizer | lr | steps until the loss is below -1 | loss after 100 steps |"
    assert len(text) == 4 and text[1] == "|---|---|---|---|"


@pytest.mark.parametrize("name", trajectories.SCENES)
def test_scenes_name_what_is_wrong(name):
    scene = trajectories.SCENES[name]
    with pytest.raises(ValueError, match=r"rules: found 'sdg', expected some of .*momentum"):
        scene(("sdg",))
    with pytest.raises(ValueError, match="rules: found"):
        scene(())
    with pytest.raises(ValueError, match="steps: found 0"):
        scene(steps=0)
    with pytest.raises(TypeError, match="steps: found"):
        scene(steps=1.5)


SLOPE = trajectories.RAVINE.gradient


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: trajectories.ravine(3), TypeError, "rules: found 3 of type int, expected names of rules"),
        (lambda: trajectories.nag([["momentum"]]), ValueError, r"rules: found \['momentum'\]"),
        (
            lambda: trajectories.descend("sgd", None, (1.0,), [0.1], 3),
            TypeError,
            "gradient: found None.*a function of points",
        ),
        (
            lambda: trajectories.descend("sgd", SLOPE, "x", [0.1], 3),
            TypeError,
            "start: found 'x' of type str, expected one or more",
        ),
        (
            lambda: trajectories.descend("sgd", SLOPE, (1.0, math.inf), [0.1], 3),
            ValueError,
            r"start: found \(1.0, inf\)",
        ),
        (
            lambda: trajectories.descend("sgd", SLOPE, (), [0.1], 3),
            ValueError,
            r"start: found \(\), expected one or more numbers",
        ),
        (
            lambda: trajectories.descend("sgd", SLOPE, (1.0, 2.0), [], 3),
            ValueError,
            r"lrs: found \[\], expected one learning rate",
        ),
        (
            lambda: trajectories.descend("sgd", SLOPE, (1.0, 2.0), 0.1, 3),
            TypeError,
            "lrs: found 0.1 of type float, expected a seq",
        ),
        (
            lambda: trajectories.descend("sgd", lambda p: p[0], (1.0, 2.0), [0.1], 3),
            ValueError,
            r"gradient: found gradients of shape \(2,\), expected \(1, 2\)",
        ),
        (
            lambda: trajectories.descend("sgd", lambda p: p[:, :1], (1.0, 2.0), [0.1], 3),
            ValueError,
            r"gradient: found gradients of shape \(1, 1\), expected \(1, 2\)",
        ),
        (lambda: trajectories.tuned("sgd", SLOPE, 3), TypeError, "objective: found .*expected an Objective"),
        (lambda: trajectories.swats(SLOPE, np.ones(2), 0.1, 2.5), TypeError, "steps: found 2.5"),
        (lambda: trajectories.swats(SLOPE, np.ones(2), 0.1, 3, 0), ValueError, "tolerance: found 0, expected .* > 0"),
        (lambda: trajectories.swats(3, np.ones(2), 0.1, 3), TypeError, "gradient: found 3 of type int"),
        (lambda: dataclasses.replace(trajectories.BEALE, loss=3), TypeError, "loss: found 3 of type int"),
        (
            lambda: dataclasses.replace(trajectories.BEALE, start=(1.0,)),
            ValueError,
            r"start: found \(1.0,\), expected 2",
        ),
        (lambda: dataclasses.replace(trajectories.BEALE, window=None), TypeError, "window: found None"),
        (lambda: dataclasses.replace(trajectories.nag(steps=2), tracks=()), ValueError, "tracks: found .*one or more"),
        (lambda: dataclasses.replace(trajectories.nag(steps=2), panels=("plain",)), ValueError, "did you mean 'plane'"),
        (lambda: trajectories.save("beale", "x.svg"), TypeError, "scene: found 'beale' of type str, expected a Scene"),
        (lambda: trajectories.save(trajectories.nag(steps=2), 3), TypeError, "path: found 3 of type int"),
        (lambda: trajectories.page(None), TypeError, "scene: found None"),
        (lambda: trajectories.show(None), TypeError, "scene: found None"),
    ],
)
def test_what_is_wrong_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


# ---- drawings, by their data ----


@pytest.mark.parametrize("name", trajectories.SCENES)
def test_drawings_show_the_tracks(name):
    needs_matplotlib()
    scene = trajectories.SCENES[name](steps=30)
    made = drawing.Drawing(scene)
    assert len(made.pens) == len(scene.panels) * len(scene.tracks)
    for step in (0, 7, 30):
        made.show(step)
        for pen, track in zip(made.pens, scene.tracks * len(scene.panels), strict=True):
            drawn = np.array(pen.line.get_data_3d() if name == "saddle" else pen.line.get_data())
            assert drawn.shape[1] == step + 1
            assert pen.line.get_color() == pen.head.get_color() == track.look.colour
        if "plane" in scene.panels:
            first = np.array(made.pens[0].line.get_data())
            assert first.T.tolist() == scene.tracks[0].points[: step + 1].tolist()
    legend = [text.get_text() for text in made.figure.legends[0].get_texts()]
    assert legend[: len(scene.tracks)] == [f"{row[0]}: {row[2]}" for row in scene.rows()]


def test_a_track_on_a_surface_ends_where_it_leaves_the_window():
    needs_matplotlib()
    scene = trajectories.saddle(("momentum",), steps=100)
    (pen,) = drawing.Drawing(scene).pens
    left, right, low, high = scene.objective.window
    assert abs(scene.tracks[0].points).max() > 10
    x, y, z = pen.points.T
    assert x.min() >= left and x.max() <= right and y.min() >= low and y.max() <= high
    np.testing.assert_allclose(z, x * x - y * y)


def test_animations_move(small):
    needs_matplotlib()
    from PIL import Image

    images = list(drawing.Drawing(small).images(drawing.frames(small.steps)))
    assert len(images) == len(drawing.frames(12)) == 10 and images[0].shape == (540, 900, 3)
    blue = np.array([int(rule_look("sgd").colour[i : i + 2], 16) for i in (1, 3, 5)])
    inked = [int((abs(image.astype(int) - blue).max(axis=2) < 8).sum()) for image in images]
    assert inked == sorted(inked) and inked[-1] > inked[0] + 500
    assert all(Image.fromarray(image).getpixel((0, 0)) == (255, 255, 255) for image in images)


def test_files(small, tmp_path):
    needs_matplotlib()
    from PIL import Image

    for ending in (".png", ".svg", ".gif", ".html"):
        trajectories.save(small, tmp_path / f"x{ending}")
    picture = Image.open(tmp_path / "x.png")
    assert picture.mode == "RGBA" and picture.getpixel((0, 0))[3] == 0
    animated = Image.open(tmp_path / "x.gif")
    assert animated.n_frames == 10 and animated.info["loop"] == 0
    assert (tmp_path / "x.svg").read_text().startswith("<svg")
    with pytest.raises(ValueError, match=r"path: found 'x.jpg', expected a name ending in .gif"):
        trajectories.save(small, tmp_path / "x.jpg")


def test_the_page_has_the_tracks_where_the_picture_has_them(small):
    needs_matplotlib()
    text = trajectories.page(small)
    data = json.loads(re.search(r"^const data = (.*);$", text, re.M)[1])
    assert data["steps"] == 12 and len(data["lines"]) == 3
    assert not re.search(r"@\w+@", text)
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!#|http://www.w3.org)|@import|<link", text)
    for row in small.rows():
        assert "".join(f"<td>{cell}</td>" for cell in row) in text
    # matplotlib's own coordinates of the first line, in a picture of the same scene.
    from matplotlib import rc_context

    with rc_context({**drawing.STYLE, "path.simplify": False}):
        made = drawing.Drawing(small)
        made.pens[0].line.set_gid("first")
        path = re.search(r'<g id="first">\s*<path d="([^"]*)"', made.svg())[1]
    drawn = np.array(re.findall(r"[ML] (-?[\d.]+) (-?[\d.]+)", path), float)
    np.testing.assert_allclose(np.array(data["lines"][0]["points"]), drawn, atol=0.02)


def test_mp4_is_written_by_ffmpeg(small, tmp_path, monkeypatch):
    needs_matplotlib()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackendUnavailable, match="no ffmpeg here"):
        trajectories.save(small, tmp_path / "x.mp4")
    fake = tmp_path / "ffmpeg"
    fake.write_text('#!/bin/sh\nfor last; do :; done\nexec /bin/cat > "$last"\n')
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    trajectories.save(small, tmp_path / "x.mp4")
    assert os.path.getsize(tmp_path / "x.mp4") == (10 + 30) * 540 * 900 * 3
    fake.write_text("#!/bin/sh\necho no such codec >&2\nexit 3\n")
    with pytest.raises(BackendUnavailable, match=r"did not write .*no such codec"):
        trajectories.save(small, tmp_path / "x.mp4")


def test_no_window_without_a_display(small, monkeypatch):
    needs_matplotlib()
    import matplotlib.pyplot as plt

    plt.switch_backend("agg")
    with pytest.raises(BackendUnavailable, match=r"no window can be opened here.*--save picture\.gif"):
        trajectories.show(small)
    assert plt.get_fignums() == []


def test_a_window_plays_the_scene(small, monkeypatch):
    needs_matplotlib()
    import matplotlib.pyplot as plt
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    plt.switch_backend("agg")
    monkeypatch.setattr(FigureCanvasAgg, "required_interactive_framework", "a toolkit", raising=False)
    seen = []

    def play():
        """Draws the window's first frame, as its event loop would."""
        (number,) = plt.get_fignums()
        figure = plt.figure(number)
        figure.canvas.draw()
        seen.append([len(line.get_xdata()) for line in figure.axes[0].lines if line.get_label() in labels])
        plt.close(figure)

    labels = [f"{row[0]}: {row[2]}" for row in small.rows()]
    monkeypatch.setattr(plt, "show", play)
    trajectories.show(small)
    assert seen == [[1, 1, 1]] and plt.get_fignums() == []


def lines_of(picture):
    """The coloured lines of a picture in SVG, by colour: their points, as shares of the box around all of them."""
    found = re.findall(r'<path d="(M [^"]*)"[^>]*style="fill: none;[^"]*?stroke: (#\w+); stroke-width: 2.2', picture)
    lines = {colour: np.array(re.findall(r"[ML] (\S+) (\S+)", path), float) for path, colour in reversed(found)}
    every = np.concatenate(list(lines.values()))
    low, high = every.min(axis=0), every.max(axis=0)
    return {colour: (points - low) / (high - low) for colour, points in lines.items()}


def distance(points, others):
    """The largest distance of a line's points from another line."""
    shares = np.linspace(0, 1, 50)[:, None, None]
    dense = (others[:-1] * (1 - shares) + others[1:] * shares).reshape(-1, 2)
    return max(np.linalg.norm(dense - point, axis=1).min() for point in points)


@pytest.mark.parametrize("name", ["beale", "saddle"])
def test_the_front_page_shows_what_its_commands_draw(name, tmp_path, capsys):
    needs_matplotlib()
    picture = f"benchmarks/pictures/{name}.svg"
    ((shown, command),) = re.findall(rf"\]\(({picture})\)\n\n`fastopt (show .*--save) {picture}`", page_of())
    cli.main([*command.split(), str(tmp_path / "new.svg")])
    table = re.findall(r"^\| (\w+) \| [\d.]+ \| ([\w ]+) \|", capsys.readouterr().out, re.M)
    old, new = (ROOT / shown).read_text(), (tmp_path / "new.svg").read_text()
    assert re.findall(r">(\w+: [\w ]+)</text>", old) == [f"{rule}: {steps}" for rule, steps in table]
    old, new = lines_of(old), lines_of(new)
    assert len(table) == 6 and old.keys() == new.keys() == {rule_look(rule).colour for rule, _ in table}
    for colour, line in old.items():
        assert max(distance(line, new[colour]), distance(new[colour], line)) < 3e-3, colour
        np.testing.assert_allclose(line[[0, -1]], new[colour][[0, -1]], atol=3e-3)


def test_the_same_rule_has_the_same_colour_in_every_picture():
    for name, scene in trajectories.SCENES.items():
        for track in scene(steps=2).tracks:
            assert track.name not in fastopt.RULES or track.look == rule_look(track.name), name


# ---- the claims ----


@pytest.fixture(scope="module")
def run():
    """Every claim, run once."""
    return {claim.__name__: claim() for claim in trajectories.CLAIMS}


EXPECTED = {
    "momentum_damps_the_ravine": "in part",
    "nag_corrects_sooner": "yes",
    "adagrad_rate_only_falls": "yes",
    "adaptive_rules_leave_the_saddle_first": "in part",
    "annealed_sgd_converges": "yes",
    "adam_corrects_its_bias": "yes",
    "amsgrad_survives_reddis_counterexample": "yes",
    "adabound_begins_as_adam_and_ends_as_sgd": "yes",
    "swats_switches": "in part",
    "noise_helps_a_deep_network": "yes",
}


@pytest.mark.parametrize("name", EXPECTED)
def test_claims(run, name):
    assert list(run) == list(EXPECTED)
    assert run[name].holds == EXPECTED[name], run[name].figures
    example = doctest.DocTestFinder().find(getattr(claims, name), name)[0].examples[0]
    assert example.source == f"{name}().holds\n" and example.want == f"'{EXPECTED[name]}'\n"


def test_the_page_has_the_claims(run):
    text = page_of("fastopt/trajectories")
    for name, claim in run.items():
        row = f"| {claim.says} | {claim.holds} | {claim.figures} |"
        # A network's sums are NumPy's, whose order is the machine's.
        assert (row.rpartition("| acc")[0] if name == "noise_helps_a_deep_network" else row) in text


def test_swats_switches_where_the_projected_rate_is_constant():
    """A constant gradient: gamma is lr at once, and the steps go on as they were."""
    points, switch, rate = trajectories.swats(lambda p: np.ones(2), np.zeros(2), 0.01, 200)
    assert switch == 2 and rate == pytest.approx(0.01, rel=1e-6)
    steps = -np.diff(points[:, 0])
    assert steps[0] == pytest.approx(0.01, rel=1e-6) and steps[-1] == pytest.approx(0.01, rel=1e-3)
    _, never, _ = trajectories.swats(lambda p: np.zeros(2), np.zeros(2), 0.01, 5)
    assert never is None
