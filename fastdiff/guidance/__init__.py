"""Guidance: how the conditional branch c of a network and another one, u, become one output, and models that guide.

fd.sample(model, plan, shape, cond=..., guidance=3.0)                        # u + w (c - u), w = 3
fd.sample(model, plan, shape, cond=..., guidance=fd.guidance.APG(7.5))       # and its relatives
fd.sample(fd.guidance.Views(model, views), plan, shape, cond=...)            # models around models
fd.sample(fd.guidance.load_classifier(path).guide(checkpoint), plan, shape, cond=...)
"""

from fastdiff.guidance import views
from fastdiff.guidance.branches import Condition, Model
from fastdiff.guidance.classifier import Classifier, load_classifier
from fastdiff.guidance.networks import Autoguidance, ClassifierGuidance
from fastdiff.guidance.rules import APG, CFG, CFGZero, Scale, scale
from fastdiff.guidance.views import View, Views

__all__ = [
    "APG",
    "CFG",
    "Autoguidance",
    "CFGZero",
    "Classifier",
    "ClassifierGuidance",
    "Condition",
    "Model",
    "Scale",
    "View",
    "Views",
    "load_classifier",
    "scale",
    "views",
]
