"""`graphc.autograd` as a module that can be imported from: ``from graphc.autograd import Variable, grad``."""
from .eager.autograd import Variable, backward, grad, gradcheck, no_grad

__all__ = ["Variable", "backward", "grad", "gradcheck", "no_grad"]
