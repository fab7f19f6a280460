"""Fit the accuracy table's predictor: single errors to a joint one, joint error to accuracy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lapdtr_ros.planning.accuracy import Curve, JointFit

from .errors import CalibrateError

_QUANTILE = 0.9


def fit_joint(totals: Sequence[float], joints: Sequence[float]) -> JointFit:
    """Least squares of log(joint) = alpha + gamma log(total).

    Args:
        totals: sums of single errors of measured plans, positive.
        joints: errors of the plans themselves, positive.

    Raises:
        CalibrateError: fewer than two plans, or errors that do not grow with their sum.
    """
    if len(totals) < 2:
        raise CalibrateError(f'{len(totals)} combined plans: measure at least 2 to fit a predictor')
    gamma, alpha = np.polyfit(np.log(totals), np.log(joints), 1)
    if gamma <= 0:
        raise CalibrateError(
            f'joint errors fall with the sum of single errors (slope {gamma:.2f}): measure more '
            f'plans on more frames'
        )
    return JointFit(alpha=float(alpha), gamma=float(gamma), plans=len(totals))


def fit_curve(baseline: float, errors: Sequence[float], accuracies: Sequence[float]) -> Curve:
    """Falling curve of least squares through measured accuracies (pool adjacent violators).

    Single accuracies may lie above the undisturbed model's by their noise. They count as they are,
    so that noise cancels within a pool; the curve starts at the model's own and never rises above
    it. It is smooth enough by being linear between the means of the pools.

    Args:
        baseline: accuracy without loss.
        errors: joint errors, positive.
        accuracies: measured at these.

    Raises:
        CalibrateError: nothing was measured.
    """
    if not len(errors):
        raise CalibrateError('no measured accuracies: measure at least one plan with a loss')
    order = np.argsort(errors, kind='stable')
    pools: list[tuple[float, float, int]] = []
    for place in order:
        error, accuracy, weight = float(errors[place]), float(accuracies[place]), 1
        while pools and (pools[-1][1] <= accuracy or pools[-1][0] >= error):
            other_error, other_accuracy, other_weight = pools.pop()
            total = weight + other_weight
            error = (error * weight + other_error * other_weight) / total
            accuracy = (accuracy * weight + other_accuracy * other_weight) / total
            weight = total
        pools.append((error, accuracy, weight))
    # Means of pools may be off by the last digit; the curve must not rise by that either.
    falling = np.minimum.accumulate([baseline, *(accuracy for _, accuracy, _ in pools)])
    return Curve(error=(0.0, *(error for error, _, _ in pools)), accuracy=tuple(falling.tolist()))


def margin(
    baseline: float,
    joint: JointFit,
    totals: Sequence[float],
    errors: Sequence[float],
    accuracies: Sequence[float],
) -> float:
    """90 % error of predicted accuracies of plans that the curve was not fitted on.

    Every plan is left out of the curve once.

    Args:
        baseline: accuracy without loss.
        joint: the fit of joint errors.
        totals: sum of single errors of each plan.
        errors: measured joint error of each plan.
        accuracies: measured accuracy of each plan.
    """
    misses = []
    for left_out in range(len(errors)):
        others = [place for place in range(len(errors)) if place != left_out]
        if not others:
            return 0.0
        curve = fit_curve(baseline, [errors[i] for i in others], [accuracies[i] for i in others])
        predicted_error = np.exp(joint.alpha + joint.gamma * np.log(totals[left_out]))
        predicted = np.interp(predicted_error, curve.error, curve.accuracy)
        misses.append(abs(predicted - accuracies[left_out]))
    return float(np.quantile(misses, _QUANTILE))
