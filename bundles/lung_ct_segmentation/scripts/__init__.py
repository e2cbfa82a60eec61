# SPDX-License-Identifier: Apache-2.0
"""Code of the lung CT bundle: the derivation of its labels and the transforms its configs name."""
