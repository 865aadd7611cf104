"""``torch.nn`` with our layers in place of torch's::

    from torch_manualbp import nn        # was: from torch import nn

Ours are the classes whose ``__module__`` is here, each a subclass of the torch class of its name with the same
constructor, repr and ``state_dict``; ``torch-manualbp layers`` prints them with their formulas. ``nn.functional`` is
:mod:`torch_manualbp.functional`. Every other name (``Module``, ``Sequential``, ``Flatten``, ``Parameter``, ``init``, …)
is torch's own, handed on as it is.
"""

from torch.nn import *  # noqa: F403
from torch.nn import attention as attention
from torch.nn import init as init
from torch.nn import modules as modules
from torch.nn import parallel as parallel
from torch.nn import parameter as parameter
from torch.nn import utils as utils

from torch_manualbp import functional as functional  # type: ignore[no-redef]
from torch_manualbp.nn.activation import *  # noqa: F403
from torch_manualbp.nn.adaptive import *  # noqa: F403
from torch_manualbp.nn.convolution import *  # noqa: F403
from torch_manualbp.nn.dropout import *  # noqa: F403
from torch_manualbp.nn.embedding import *  # noqa: F403
from torch_manualbp.nn.linear import *  # noqa: F403
from torch_manualbp.nn.loss import *  # noqa: F403
from torch_manualbp.nn.margin import *  # noqa: F403
from torch_manualbp.nn.norm import *  # noqa: F403
from torch_manualbp.nn.padding import *  # noqa: F403
from torch_manualbp.nn.pooling import *  # noqa: F403
from torch_manualbp.nn.projected import *  # noqa: F403
from torch_manualbp.nn.recurrent import *  # noqa: F403
from torch_manualbp.nn.resampling import *  # noqa: F403
from torch_manualbp.nn.transformer import *  # noqa: F403
