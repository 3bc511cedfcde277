"""Applies a policy to a call: retry around circuit breaker around timeout around the call."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from mesh.errors import CircuitOpenError, DeadlineExceededError, MeshError
from mesh.policies import Breaker, Policy

__all__ = ["Guard"]

_T = TypeVar("_T")


class Guard:
    """A policy at work for one target."""

    def __init__(self, policy: Policy) -> None:
        """Start with a closed breaker."""
        self._policy = policy
        self._breaker = None if policy.breaker is None else Breaker(policy.breaker, time.monotonic)

    @classmethod
    def of(cls, policy: Policy) -> Guard | None:
        """Give a guard, or None when the policy asks for nothing."""
        return None if policy == Policy() else cls(policy)

    async def run(self, call: Callable[[], Awaitable[_T]]) -> _T:
        """Make a call as often as the policy says; the last failure is raised.

        Raises:
            CircuitOpenError: The breaker refuses.
            DeadlineExceededError: The last attempt took too long.
        """
        started = time.monotonic()
        attempt = 0
        while True:
            attempt += 1
            try:
                return await self._attempt(call)
            except MeshError as error:
                retry = self._policy.retry
                if retry is None or not error.retryable:
                    raise
                delay = retry.delay(attempt, time.monotonic() - started, random.random)
                if delay is None:
                    raise
            await asyncio.sleep(delay)

    async def _attempt(self, call: Callable[[], Awaitable[_T]]) -> _T:
        breaker = self._breaker
        if breaker is None:
            return await self._timed(call)
        permit = breaker.allow()
        if permit is None:
            raise CircuitOpenError("circuit breaker is open")
        try:
            result = await self._timed(call)
        except MeshError as error:
            breaker.record(not error.retryable, permit)  # A conflict or a refusal is an answer of a target that works.
            raise
        except BaseException:
            breaker.release(permit)
            raise
        breaker.record(True, permit)
        return result

    async def _timed(self, call: Callable[[], Awaitable[_T]]) -> _T:
        timeout = self._policy.timeout
        if timeout is None:
            return await call()
        try:
            async with asyncio.timeout(timeout.seconds):
                return await call()
        except TimeoutError:
            raise DeadlineExceededError(f"no answer within {timeout.seconds:g} s") from None
