"""The benchmarks DFEW, FERV39k and MAFW, and lists and folders of your own, as data sets of clips.

All three benchmarks are given out on request only; they are read as they come, in the folders their authors
chose.

An item is (clip, label). In training a clip is one random window, augmented, float32 (3, T, S, S) in [0, 1].
When evaluating, samplers with one window per video give the same shape; "consecutive" and "dense" give all
windows of a video, (W, 3, T, S, S), W >= 1. `ifdd.training.windows.collate_windows` joins both kinds into one
batch of windows, and `mean_over_windows` averages the logits of each video.
"""

from ifdd.data.datasets.dfew import DFEW
from ifdd.data.datasets.ferv39k import FERV39k
from ifdd.data.datasets.folder import FolderDataset
from ifdd.data.datasets.list_file import ListDataset
from ifdd.data.datasets.mafw import MAFW
from ifdd.data.datasets.videos import ClipOptions, LeftOut, RawClip, Video, VideoDataset
from ifdd.data.errors import DatasetError

__all__ = [
    "DFEW",
    "MAFW",
    "ClipOptions",
    "DatasetError",
    "FERV39k",
    "FolderDataset",
    "LeftOut",
    "ListDataset",
    "RawClip",
    "Video",
    "VideoDataset",
]
