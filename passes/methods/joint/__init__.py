"""The method `joint`: sparsity and bits chosen together; with its exact inner problems."""

from __future__ import annotations

from passes.joint.bit_allocation import Allocation, allocate_bits
from passes.joint.codebook import Codebook
from passes.joint.fit import fit_codebook
from passes.joint.joint_allocation import JointAllocation, joint_allocation
from passes.joint.sparsity import project_sparsity
from passes.methods.joint.config import Joint
from passes.methods.joint.method import SPEC, JointCompression

__all__ = [
    "SPEC",
    "Allocation",
    "Codebook",
    "Joint",
    "JointAllocation",
    "JointCompression",
    "allocate_bits",
    "fit_codebook",
    "joint_allocation",
    "project_sparsity",
]
