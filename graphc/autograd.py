"""`graphc.autograd` as a module that can be imported from: ``from graphc.autograd import Variable, grad``."""
from .core.record import no_grad
from .eager.autograd import Variable, backward, grad
from .eager.gradcheck import gradcheck

__all__ = ["Variable", "backward", "grad", "gradcheck", "no_grad"]
