"""Videos: frames in at their own times, overlay frames out, and live sources.

`reader` opens files, through PyAV (`pyav`) where it is installed and OpenCV (`opencv`) elsewhere;
`header` reads what a file says of itself; `writer` writes files; `live` reads cameras and streams.
"""

from sigcam.images.video.frames import Frame as Frame
from sigcam.images.video.live import LiveSource as LiveSource
from sigcam.images.video.reader import VideoReader as VideoReader
from sigcam.images.video.writer import CODECS as CODECS
from sigcam.images.video.writer import VideoWriter as VideoWriter
from sigcam.images.video.writer import codec_of as codec_of
from sigcam.images.video.writer import write_video as write_video

__all__ = [
    "CODECS",
    "Frame",
    "LiveSource",
    "VideoReader",
    "VideoWriter",
    "codec_of",
    "write_video",
]
