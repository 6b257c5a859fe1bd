from ossconsole.api.checkpoints import OssCheckpoints as OssCheckpoints
from ossconsole.api.images import OssImages as OssImages
from ossconsole.api.watch import Watch as Watch
from ossconsole.api.watch import watch as watch

__all__ = ["OssCheckpoints", "OssImages", "Watch", "__version__", "watch"]
__version__: str
