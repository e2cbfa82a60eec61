# SPDX-License-Identifier: Apache-2.0
"""Certificates: what no attack of a given L2 size can change, by randomized smoothing."""

from __future__ import annotations

from monai_smia.certificates.binomial import binomial_tail, lower_confidence_bound
from monai_smia.certificates.certificate import ABSTAIN, Certificate
from monai_smia.certificates.certifying import certify
from monai_smia.certificates.family import TooFewSamples, reject
from monai_smia.certificates.table import certificate_findings, certificate_markdown, certificate_table

__all__ = [
    "ABSTAIN",
    "Certificate",
    "TooFewSamples",
    "binomial_tail",
    "certificate_findings",
    "certificate_markdown",
    "certificate_table",
    "certify",
    "lower_confidence_bound",
    "reject",
]
