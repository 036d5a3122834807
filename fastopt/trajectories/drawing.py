"""Scenes drawn: pictures, animations, a page with a slider, a window. Drawing imports matplotlib."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from html import escape
from importlib import resources
from io import StringIO
from os import PathLike
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np

from ..checks import wrong_type, wrong_value
from ..errors import BackendUnavailable
from ..palette import GREY, STYLE, load_matplotlib
from .descent import Track
from .objectives import Floats
from .scenes import Scene

#: The formats that `save` writes, by the ending of the file's name.
FORMATS = (".gif", ".html", ".mp4", ".png", ".svg")

_DPI = 100  # of animations
_FRAMES_A_SECOND = 20
_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def frames(steps: int, most: int = 90) -> list[int]:
    """The steps that an animation shows: from 0 to the last, closer together where tracks are fast, at the beginning.

    Examples
    --------
    >>> frames(100, most=5)
    [0, 6, 25, 56, 100]
    """
    return np.unique(np.rint(steps * np.linspace(0, 1, min(most, steps + 1)) ** 2).astype(int)).tolist()


class _Pen:
    """A track in one panel: the line so far, and a dot at its head."""

    def __init__(self, axes: Any, track: Track, points: Floats, label: str | None) -> None:
        self.axes, self.track = axes, track
        self.points = np.where(np.isfinite(points), points, np.nan)
        colour, dashes, marker, _ = track.look
        self.width = 2.2 if isinstance(dashes, str) else 1.5
        # Dashes lie over lines, and are narrower: tracks that coincide are all seen.
        style = {
            "color": colour,
            "linestyle": dashes,
            "linewidth": self.width,
            "label": label,
            "zorder": 6 - self.width,
        }
        (self.line,) = axes.plot(*self.points.T, **style)
        head = {"marker": marker, "color": colour, "markersize": 5.5, "zorder": 6}
        (self.head,) = axes.plot(*self.points[-1:].T, **head)

    def show(self, step: int) -> None:
        """Draws the track up to a step."""
        for artist, begin in ((self.line, 0), (self.head, step)):
            part = self.points[begin : step + 1].T
            artist.set_data_3d(*part) if len(part) == 3 else artist.set_data(*part)

    def pixels(self) -> Floats:
        """The points in the figure's own coordinates: points of 1/72 inch from the top left."""
        points = self.points
        if points.shape[1] == 3:
            from mpl_toolkits.mplot3d.proj3d import proj_transform

            points = np.stack(proj_transform(*points.T, self.axes.get_proj())[:2], axis=1)
        return _in_figure(self.axes, points)


def _in_figure(axes: Any, points: Any) -> Floats:
    """Points of an axes' data in points of 1/72 inch from the figure's top left."""
    figure = axes.figure
    with np.errstate(all="ignore"):
        found = np.asarray(axes.transData.transform(points)) * 72 / figure.dpi
    return np.stack([found[..., 0], figure.get_figheight() * 72 - found[..., 1]], axis=-1)


class Drawing:
    """A scene on a figure of matplotlib.

    Parameters
    ----------
    scene : Scene
        The scene that is drawn.
    figure : matplotlib figure, optional
        The figure; by default a new one.
    """

    def __init__(self, scene: Scene, figure: Any = None) -> None:
        from matplotlib.figure import Figure

        width = 7.2 * len(scene.panels) if len(scene.panels) > 1 else 9.0
        self.scene, self.pens = scene, list[_Pen]()
        self.figure = Figure() if figure is None else figure
        self.figure.set_size_inches(width, 5.4)
        self.figure.set_layout_engine("constrained")
        self.panels = [getattr(self, f"_{panel}")(1 + k, len(scene.panels)) for k, panel in enumerate(scene.panels)]
        self._arrows = [self._arrow(self.panels[0], arrow) for arrow in scene.arrows]
        self.panels[0].set_title(scene.title, loc="left", fontsize=12)
        self._legend()

    # ---- panels ----

    def _plane(self, k: int, count: int) -> Any:
        objective = self.scene.objective
        left, right, low, high = objective.window
        axes = self.figure.add_subplot(1, count, k, xlabel="x", ylabel="y", xlim=(left, right), ylim=(low, high))
        grid = self._grid(120)
        axes.contour(
            grid[..., 0], grid[..., 1], objective.loss(grid), levels=objective.levels, colors=GREY, linewidths=0.6,
            alpha=0.55,
        )  # fmt: skip
        if objective.minimum is not None:
            axes.plot(*objective.minimum, "+", color=GREY, markersize=13, markeredgewidth=2)
        self._draw(axes, [track.points for track in self.scene.tracks], first=k == 1)
        return axes

    def _space(self, k: int, count: int) -> Any:
        objective = self.scene.objective
        left, right, low, high = objective.window
        axes = self.figure.add_subplot(1, count, k, projection="3d", computed_zorder=False, xlabel="x", ylabel="y")
        axes.set_box_aspect((4, 4, 2.4), zoom=1.15)
        axes.grid(False)
        grid = self._grid(41)
        heights = objective.loss(grid)
        axes.plot_surface(
            grid[..., 0], grid[..., 1], heights, color=GREY, alpha=0.18, linewidth=0.4, edgecolor=GREY, rstride=2,
            cstride=2, shade=False, zorder=1,
        )  # fmt: skip
        for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
            axis.pane.set_visible(False)
        axes.set(xlim=(left, right), ylim=(low, high), zlim=(heights.min(), heights.max()))
        axes.view_init(elev=42, azim=-28)
        self._draw(axes, [self._within(track) for track in self.scene.tracks], first=k == 1)
        return axes

    def _loss(self, k: int, count: int) -> Any:
        axes = self.figure.add_subplot(1, count, k, xlabel="steps", ylabel="loss above the minimum", yscale="log")
        axes.grid(alpha=0.25)
        steps = np.arange(self.scene.steps + 1.0)
        losses = [np.maximum(track.losses, 1e-16) for track in self.scene.tracks]
        self._draw(axes, [np.stack([steps, loss], axis=1) for loss in losses], first=k == 1)
        finite = np.concatenate([loss[np.isfinite(loss)] for loss in losses])
        axes.set(xlim=(0, self.scene.steps), ylim=(max(finite.min() / 2, 1e-12), min(finite.max() * 2, 1e4)))
        return axes

    def _grid(self, count: int) -> Floats:
        left, right, low, high = self.scene.objective.window
        return np.stack(np.meshgrid(np.linspace(left, right, count), np.linspace(low, high, count)), axis=-1)

    def _within(self, track: Track) -> Floats:
        """A track's points and losses, as far as they are within the window: in three dimensions nothing clips them."""
        points = np.column_stack([track.points, track.losses])
        left, right, low, high = self.scene.objective.window
        x, y = track.points.T
        outside = np.flatnonzero((x < left) | (x > right) | (y < low) | (y > high))
        if len(outside):
            points[outside[0] :] = points[max(outside[0] - 1, 0)]
        return points

    def _draw(self, axes: Any, points: Sequence[Floats], first: bool) -> None:
        for track, place, row in zip(self.scene.tracks, points, self.scene.rows(), strict=True):
            self.pens.append(_Pen(axes, track, place, f"{track.name}: {row[2]}" if first else None))

    @staticmethod
    def _arrow(axes: Any, arrow: Any) -> Any:
        style = {"arrowstyle": "-|>", "color": arrow.colour, "linewidth": 1.6, "shrinkA": 0, "shrinkB": 0}
        return axes.annotate("", arrow.end, arrow.begin, arrowprops=style, zorder=6)

    def _legend(self) -> None:
        handles, labels = self.panels[0].get_legend_handles_labels()
        if self.scene.arrows:
            from matplotlib.lines import Line2D

            colours = {arrow.name: arrow.colour for arrow in self.scene.arrows}
            handles += [Line2D([], [], color=colour, marker=">", markersize=5) for colour in colours.values()]
            labels += list(colours)
        size = 8 if len(labels) > 12 else 9
        title = "\n".join(wrap(self.scene.goal, 24))
        style = {"fontsize": size, "title_fontsize": size, "alignment": "left"}
        self.figure.legend(handles, labels, loc="outside right upper", title=title, **style)

    # ---- steps ----

    def show(self, step: int) -> None:
        """Shows the tracks up to a step, and the vectors seen by then."""
        for pen in self.pens:
            pen.show(step)
        for artist, arrow in zip(self._arrows, self.scene.arrows, strict=True):
            artist.set_visible(arrow.step <= step)

    def _moving(self) -> list[Any]:
        return [*(artist for pen in self.pens for artist in (pen.line, pen.head)), *self._arrows]

    def images(self, steps: Sequence[int]) -> Iterator[np.ndarray]:
        """The pixels at some steps, on white: the background is drawn once, and the tracks over it."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        self.figure.set_dpi(_DPI)
        canvas = FigureCanvasAgg(self.figure)
        moving = self._moving()
        for artist in moving:
            artist.set_animated(True)
        canvas.draw()
        background = canvas.copy_from_bbox(self.figure.bbox)
        for step in steps:
            canvas.restore_region(background)
            self.show(step)
            for artist in moving:
                artist.axes.draw_artist(artist)
            yield np.asarray(canvas.buffer_rgba())[..., :3].copy()

    def svg(self, tracks: bool = True) -> str:
        """The picture as one element, with or without the tracks."""
        for artist in self._moving():
            artist.set_visible(tracks)
        file = StringIO()
        self.figure.savefig(file, format="svg", metadata=_METADATA)
        text = file.getvalue()
        return text[text.index("<svg") :]


def _check_scene(scene: Any) -> None:
    if not isinstance(scene, Scene):
        raise wrong_type("scene", scene, "a Scene, as fastopt.trajectories.beale makes one")


def save(scene: Scene, path: Path | str) -> None:
    """Draws a scene into a file; the ending of its name chooses the format.

    Parameters
    ----------
    scene : Scene
        The scene that is drawn.
    path : Path or str
        A ``.png`` or ``.svg``, on a transparent ground; a ``.gif`` or ``.mp4`` (by ffmpeg), animated, on white; an
        ``.html``, one page with a slider, which needs no other file.

    Raises
    ------
    TypeError
        `scene` is no scene, or `path` no path.
    ValueError
        The name has another ending.
    BackendUnavailable
        matplotlib or ffmpeg is not here, or ffmpeg did not write the file.

    Examples
    --------
    >>> from fastopt.trajectories import ravine
    >>> save(ravine(steps=5), "ravine.svg")  # doctest: +SKIP
    """
    _check_scene(scene)
    if not isinstance(path, (str, PathLike)):
        raise wrong_type("path", path, "a path")
    path = Path(path)
    if path.suffix not in FORMATS:
        raise wrong_value("path", path.name, f"a name ending in {', '.join(FORMATS)}")
    ffmpeg = shutil.which("ffmpeg") or ""
    if path.suffix == ".mp4" and not ffmpeg:
        raise BackendUnavailable("no ffmpeg here, which writes .mp4: install it (apt install ffmpeg), or name a .gif")
    if path.suffix == ".html":
        path.write_text(page(scene), encoding="utf-8")
        return
    load_matplotlib()
    from matplotlib import rc_context

    with rc_context(STYLE):
        drawing = Drawing(scene)
        if path.suffix == ".svg":
            path.write_text(drawing.svg(), encoding="utf-8")
        elif path.suffix == ".png":
            drawing.figure.savefig(path, dpi=144)
        elif path.suffix == ".gif":
            _write_gif(path, drawing.images(frames(scene.steps)))
        else:
            _write_mp4(path, drawing.images(frames(scene.steps)), ffmpeg)


def _write_gif(path: Path, images: Iterator[np.ndarray]) -> None:
    """Writes an animation that waits a second and a half at its end, all frames in the colours of the last."""
    from PIL import Image

    every = [Image.fromarray(image) for image in images]
    colours = every[-1].quantize(128)
    every = [image.quantize(palette=colours, dither=Image.Dither.NONE) for image in every]
    durations = [1000 // _FRAMES_A_SECOND] * (len(every) - 1) + [1500]
    every[0].save(path, save_all=True, append_images=every[1:], duration=durations, loop=0)


def _write_mp4(path: Path, images: Iterator[np.ndarray], ffmpeg: str) -> None:
    """Writes an animation by ffmpeg, whose sides are even numbers of pixels."""
    every = [image[: image.shape[0] // 2 * 2, : image.shape[1] // 2 * 2] for image in images]
    every += every[-1:] * (3 * _FRAMES_A_SECOND // 2)
    height, width, _ = every[0].shape
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(_FRAMES_A_SECOND), "-i", "-"]
    done = subprocess.run(
        [ffmpeg, "-y", "-loglevel", "error", *raw, "-pix_fmt", "yuv420p", str(path)],
        input=b"".join(image.tobytes() for image in every),
        capture_output=True,
        check=False,
    )
    if done.returncode:
        raise BackendUnavailable(f"{ffmpeg} did not write {path}: {done.stderr.decode(errors='replace').strip()}")


def page(scene: Scene) -> str:
    """One page of HTML with the scene, a slider for the step, and the table; it needs no other file.

    Parameters
    ----------
    scene : Scene
        The scene that is drawn.

    Returns
    -------
    str
        The page.

    Raises
    ------
    TypeError
        `scene` is no scene.
    BackendUnavailable
        matplotlib is not here.
    """
    _check_scene(scene)
    load_matplotlib()
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    with rc_context(STYLE):
        drawing = Drawing(scene)
        FigureCanvasSVG(drawing.figure)
        drawing.figure.set_dpi(72)
        still = drawing.svg(tracks=False)  # which lays the figure out too
    lines = [
        {
            "colour": pen.track.look.colour,
            "width": pen.width,
            "dashes": _svg_dashes(pen),
            "panel": drawing.panels.index(pen.axes),
            "points": [None if np.isnan(x) or np.isnan(y) else [x, y] for x, y in pen.pixels().round(2).tolist()],
        }
        for pen in drawing.pens
    ]
    arrows = [
        {
            "colour": arrow.colour,
            "step": arrow.step,
            "ends": _in_figure(drawing.panels[0], [arrow.begin, arrow.end]).round(2).tolist(),
        }
        for arrow in scene.arrows
    ]
    boxes = []
    for axes in drawing.panels:
        box = axes.bbox
        top = drawing.figure.get_figheight() * 72 - box.y1
        boxes.append([round(float(x), 2) for x in (box.x0, top, box.width, box.height)])
    data = {"steps": scene.steps, "lines": lines, "arrows": arrows, "boxes": boxes}
    head = "".join(
        f"<th>{escape(name)}</th>" for name in ("optimizer", "lr", scene.goal, f"loss after {scene.steps} steps")
    )
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in scene.rows())
    template = resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    for mark, text in {
        "title": escape(scene.title),
        "still": still,
        "table": f"<tr>{head}</tr>{body}",
        "data": json.dumps(data, separators=(",", ":"), allow_nan=False),
    }.items():
        template = template.replace(f"@{mark}@", text, 1)
    return template


def _svg_dashes(pen: _Pen) -> str:
    """A line's dashes as SVG has them: matplotlib counts them in widths of the line."""
    dashes = pen.track.look.dashes
    return "" if isinstance(dashes, str) else " ".join(f"{part * pen.width:g}" for part in dashes[1])


def show(scene: Scene) -> None:
    """Plays a scene in a window, and returns when it is closed.

    Parameters
    ----------
    scene : Scene
        The scene that is drawn.

    Raises
    ------
    TypeError
        `scene` is no scene.
    BackendUnavailable
        matplotlib is not here; or there is no display, or no toolkit for windows.
    """
    _check_scene(scene)
    load_matplotlib()
    import matplotlib.pyplot as plt
    from matplotlib.animation import FuncAnimation

    with plt.rc_context(STYLE):
        figure = plt.figure()
        if getattr(figure.canvas, "required_interactive_framework", None) is None:
            plt.close(figure)
            raise BackendUnavailable(
                "no window can be opened here: matplotlib found no display, or no toolkit such as PyQt6; name a file "
                f"instead, as --save picture.gif (or {', '.join(FORMATS[1:])})"
            )
        drawing = Drawing(scene, figure)
        steps = frames(scene.steps)
        playing = FuncAnimation(figure, drawing.show, steps, interval=1000 // _FRAMES_A_SECOND, repeat_delay=1500)
        plt.show()
        del playing  # alive until the window is closed
