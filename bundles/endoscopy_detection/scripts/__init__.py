# SPDX-License-Identifier: Apache-2.0
"""Code of the endoscopy detection bundle: its network and detector, its boxes, its metric."""
