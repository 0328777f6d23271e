"""What a reader of a page sees: its texts, those that lie on each other, and those that it cuts off."""

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

SMALLEST = 7.0  # points


def lay_out(figure: Figure) -> None:
    """Place every tick and text as drawing would, without painting a pixel."""
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()


def seen(figure: Figure) -> list[tuple[Text, Bbox]]:
    """Every visible text with its box on the page."""
    lay_out(figure)
    unseen = set()
    for axis in figure.findobj(Axis):
        low, high = sorted(axis.get_view_interval())
        for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
            if not low <= tick.get_loc() <= high:  # kept by matplotlib, never drawn
                unseen |= {tick.label1, tick.label2}
    shown = [text for text in figure.findobj(Text) if text not in unseen]
    return [(t, t.get_window_extent()) for t in shown if t.get_visible() and t.get_text().strip()]


def overlaps(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of visible texts whose boxes cross by more than a pixel."""
    crossing, texts = [], seen(figure)
    for i, (one, a) in enumerate(texts):
        for other, b in texts[i + 1 :]:
            wide = min(a.x1, b.x1) - max(a.x0, b.x0)
            high = min(a.y1, b.y1) - max(a.y0, b.y0)
            if wide > 1.5 and high > 1.5:
                crossing.append((one.get_text(), other.get_text()))
    return crossing


def cut_off(figure: Figure) -> list[str]:
    """Texts and axes that are not wholly on the page, and texts too small to be read."""
    boxes = [(text.get_text(), box) for text, box in seen(figure)]
    boxes += [(str(ax.get_label()), ax.get_tightbbox()) for ax in figure.findobj(Axes)]
    page = figure.bbox.padded(0.5)
    small = [text.get_text() for text, _ in seen(figure) if text.get_fontsize() < SMALLEST]
    return small + [
        what for what, box in boxes if not (page.contains(box.x0, box.y0) and page.contains(box.x1, box.y1))
    ]
