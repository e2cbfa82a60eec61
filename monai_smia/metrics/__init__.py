# SPDX-License-Identifier: Apache-2.0
"""Metrics of attacks: size and stability of perturbations, success, what is lost, structures that vanish."""

from __future__ import annotations

from monai_smia.metrics.distances import (
    StructureHausdorffMetric,
    StructureSurfaceDistanceMetric,
    compute_structure_hausdorff,
    compute_structure_surface_distance,
    worst_distance,
)
from monai_smia.metrics.drop import MetricDrop
from monai_smia.metrics.perturbation import PerturbationNorm, compute_perturbation_norm
from monai_smia.metrics.similarity import similarity_metrics
from monai_smia.metrics.stability import PerturbationStability, compute_image_variance, compute_stack_variance
from monai_smia.metrics.structures import (
    StructureDiceMetric,
    StructureEventMetric,
    StructureEvents,
    compute_structure_dice,
    compute_structure_events,
)
from monai_smia.metrics.success import AttackSuccess, compute_attack_success

__all__ = [
    "AttackSuccess",
    "MetricDrop",
    "PerturbationNorm",
    "PerturbationStability",
    "StructureDiceMetric",
    "StructureEventMetric",
    "StructureEvents",
    "StructureHausdorffMetric",
    "StructureSurfaceDistanceMetric",
    "compute_attack_success",
    "compute_image_variance",
    "compute_perturbation_norm",
    "compute_stack_variance",
    "compute_structure_dice",
    "compute_structure_events",
    "compute_structure_hausdorff",
    "compute_structure_surface_distance",
    "similarity_metrics",
    "worst_distance",
]
