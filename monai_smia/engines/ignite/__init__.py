# SPDX-License-Identifier: Apache-2.0
"""What the engines need of ignite beyond its documented interface."""

from __future__ import annotations
