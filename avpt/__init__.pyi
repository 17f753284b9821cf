from avpt import balancing as balancing
from avpt import errors as errors
from avpt import masking as masking
from avpt.library import abri as abri
from avpt.library import fold as fold
from avpt.library import inspect as inspect
from avpt.library import load_model as load_model
from avpt.library import open_store as open_store

__version__: str
__all__: list[str]
