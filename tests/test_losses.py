"""Every loss against values worked out by hand, its gradient, and the extremes: nothing present, nothing labelled."""

import math

import pytest
import torch
from torch import Tensor, tensor
from torch.testing import assert_close

from expr_lib.losses import (
    ADVERSARIES,
    agreement_loss,
    au_loss,
    au_weights,
    class_confusion_loss,
    class_discriminator_loss,
    class_weights,
    cross_entropy_discriminator_loss,
    inverted_labels_loss,
    lsgan_d_loss,
    lsgan_g_loss,
    max_entropy_loss,
    no_confusion_loss,
    reconstruction_loss,
    reversal_loss,
)

NAN = math.nan


def gradient(loss: Tensor, of: Tensor) -> Tensor:
    return torch.autograd.grad(loss, of)[0]


# -- action units --------------------------------------------------------------------------------------------------


def test_au_loss_is_the_kl_divergence_of_two_coins() -> None:
    # one AU at intensity 2 (y = 0.4) judged p = 0.5, one absent judged p = 0.5:
    # 0.4 ln(0.4/0.5) + 0.6 ln(0.6/0.5) = 0.020136, and ln 2 = 0.693147
    assert_close(au_loss(tensor([[0.0, 0.0]]), tensor([[2.0, 0.0]])), tensor((0.0201355 + 0.6931472) / 2))


def test_au_loss_has_the_slope_p_minus_y_and_is_zero_at_the_label() -> None:
    logit = tensor([[0.3, -1.2]], requires_grad=True)
    au = tensor([[4.0, 0.5]])
    assert_close(gradient(au_loss(logit, au), logit), (logit.sigmoid() - au / 5).detach() / 2)
    exact = (au / 5).logit()
    assert au_loss(exact, au).abs() < 1e-6


def test_au_loss_weights_aus() -> None:
    one, other = au_loss(tensor([[0.0]]), tensor([[2.0]])), au_loss(tensor([[0.0]]), tensor([[0.0]]))
    both = au_loss(tensor([[0.0, 0.0]]), tensor([[2.0, 0.0]]), tensor([3.0, 1.0]))
    assert_close(both, (3 * one + other) / 4)


def test_missing_aus_count_for_nothing() -> None:
    logit = tensor([[0.7, 9.0], [-0.2, 1.0]], requires_grad=True)
    loss = au_loss(logit, tensor([[2.0, NAN], [NAN, 0.0]]))
    slope = gradient(loss, logit)
    assert slope[0, 1] == 0 and slope[1, 0] == 0 and slope[0, 0] != 0 and slope[1, 1] != 0
    assert_close(loss, (au_loss(logit[:1, :1], tensor([[2.0]])) + au_loss(logit[1:, 1:], tensor([[0.0]]))) / 2)


@pytest.mark.parametrize("au", [0.0, 5.0])
def test_au_loss_at_the_ends_of_the_scale_stays_finite(au: float) -> None:
    logit = tensor([[-80.0, 0.0, 80.0]], requires_grad=True)
    loss = au_loss(logit, torch.full((1, 3), au))
    assert loss.isfinite() and gradient(loss, logit).isfinite().all()


def test_au_weights_are_inverse_frequencies_of_mean_one() -> None:
    # present in 1/2 and 1/4 of the labelled images: weights 2 : 4
    au = tensor([[1.0, 0.0], [5.0, 0.9], [0.0, 3.0], [0.0, 0.0], [NAN, NAN]])
    assert_close(au_weights(au), tensor([2.0, 4.0]) / 3)


def test_au_weights_of_units_never_present_or_never_labelled_are_bounded() -> None:
    weight = au_weights(tensor([[0.0, NAN, 1.0]] * 4))
    assert_close(weight, tensor([50.0, 50.0, 1.0]) * 3 / 101)


# -- the multi-class adversary -------------------------------------------------------------------------------------


def test_tell_class_is_the_squared_distance_to_the_one_hot_class() -> None:
    score = tensor([[[0.2, 0.5, 0.1]]], requires_grad=True)
    loss = class_discriminator_loss(score, tensor([[1]]), torch.ones(1, 3))
    assert_close(loss, tensor(0.2**2 + 0.5**2 + 0.1**2))
    assert_close(gradient(loss, score), tensor([[[0.4, -1.0, 0.2]]]))


def test_hide_class_is_the_squared_distance_to_the_uniform_answer() -> None:
    score = tensor([[[0.2, 0.5, 0.1, 0.25]]], requires_grad=True)
    loss = class_confusion_loss(score, tensor([[1]]), torch.ones(1, 4))
    assert_close(loss, tensor(0.05**2 + 0.25**2 + 0.15**2))
    assert_close(gradient(loss, score), tensor([[[-0.1, 0.5, -0.3, 0.0]]]))


def test_classes_that_an_au_does_not_have_are_left_alone() -> None:
    score = tensor([[[0.5, 0.5, 9.0]]], requires_grad=True)
    weight = tensor([[1.0, 1.0, 0.0]])
    assert class_confusion_loss(score, tensor([[0]]), weight) == 0
    loss = class_discriminator_loss(score, tensor([[0]]), weight)
    assert_close(loss, tensor(0.5))
    assert gradient(loss, score)[0, 0, 2] == 0


def test_class_weights_balance_the_classes() -> None:
    cls = tensor([[0, 0], [0, 0], [0, -1], [1, -1]])
    weight = class_weights(cls, 2)
    assert_close(weight, tensor([[4 / 6, 4 / 2], [1.0, 0.0]]))  # 3 and 1 of 4; all of 2, class 1 never seen
    assert_close((weight[0] * tensor([3.0, 1.0])).sum() / 4, tensor(1.0))


def test_who_knows_nothing_answers_uniformly_under_balanced_weights() -> None:
    """The encoder's target is the discriminator's optimum once f_f tells nothing: the two losses agree on the end."""
    cls = tensor([[0]] * 6 + [[1]] * 3 + [[2]])
    weight = class_weights(cls, 3)
    score = torch.full((1, 1, 3), 1 / 3, requires_grad=True)
    slope = gradient(class_discriminator_loss(score.expand(10, 1, 3), cls, weight), score)
    assert_close(slope, torch.zeros(1, 1, 3), atol=1e-6, rtol=0)


def test_reversal_is_the_discriminators_loss_turned_round() -> None:
    score = tensor([[[0.2, 0.5, 0.1]]], requires_grad=True)
    loss = reversal_loss(score, tensor([[1]]), torch.ones(1, 3))
    assert_close(loss, tensor(-(0.2**2 + 0.5**2 + 0.1**2)))
    assert_close(gradient(loss, score), tensor([[[-0.4, 1.0, -0.2]]]))


def test_inverted_labels_ask_for_the_opposite() -> None:
    score = tensor([[[0.2, 0.8]], [[0.7, 0.3]]], requires_grad=True)  # present, absent
    loss = inverted_labels_loss(score, tensor([[1], [0]]), torch.ones(1, 2))
    assert_close(loss, tensor(((0.2 - 1) ** 2 + 0.8**2 + 0.7**2 + (0.3 - 1) ** 2) / 2))
    assert_close(gradient(loss, score), tensor([[[-0.8, 0.8]], [[0.7, -0.7]]]))
    # four classes, one of them unknown to this AU: absent -> (0, 1/2, 1/2, ignored)
    score, weight = tensor([[[0.0, 0.5, 0.5, 9.0]]]), tensor([[1.0, 2.0, 2.0, 0.0]])
    assert inverted_labels_loss(score, tensor([[0]]), weight) == 0
    assert_close(inverted_labels_loss(score, tensor([[2]]), weight), tensor(1 + 0.25 + 0.25))


def test_entropy_is_zero_in_doubt_and_log_c_when_certain() -> None:
    weight = tensor([[1.0, 1.0, 0.0]])
    assert_close(max_entropy_loss(tensor([[[3.0, 3.0, 99.0]]]), tensor([[0]]), weight), tensor(0.0))
    assert_close(max_entropy_loss(tensor([[[50.0, 0.0, 99.0]]]), tensor([[0]]), weight), tensor(math.log(2)))
    # p = (3/4, 1/4): ln 2 + 0.75 ln 0.75 + 0.25 ln 0.25 = 0.130812; slope p_c (ln p_c + H), H = 0.562335
    score = tensor([[[math.log(3.0), 0.0, 7.0]]], requires_grad=True)
    loss = max_entropy_loss(score, tensor([[1]]), weight)
    assert_close(loss, tensor(0.130812))
    slope = 0.75 * (math.log(0.75) + 0.562335)
    assert_close(gradient(loss, score), tensor([[[slope, -slope, 0.0]]]))


def test_tell_probability_is_cross_entropy_over_the_classes_there_are() -> None:
    score = tensor([[[math.log(3.0), 0.0, 7.0]]], requires_grad=True)
    loss = cross_entropy_discriminator_loss(score, tensor([[1]]), tensor([[1.0, 1.0, 0.0]]))
    assert_close(loss, tensor(math.log(4.0)))
    assert_close(gradient(loss, score), tensor([[[0.75, -0.75, 0.0]]]))


def test_without_an_adversary_nothing_is_asked_of_the_encoder() -> None:
    loss = no_confusion_loss(
        torch.randn(2, 3, 4, requires_grad=True), torch.zeros(2, 3, dtype=torch.long), torch.ones(3, 4)
    )
    assert loss == 0 and not loss.requires_grad


@pytest.mark.parametrize(
    "loss", sorted({f for pair in ADVERSARIES.values() for f in pair} - {no_confusion_loss}, key=str)
)
@pytest.mark.parametrize("cls", [torch.zeros(4, 3, dtype=torch.long), torch.full((4, 3), 3)])
def test_every_adversary_bears_only_absent_and_only_strongest_aus(loss, cls) -> None:  # type: ignore[no-untyped-def]
    score = (100 * torch.randn(4, 3, 4, generator=torch.Generator().manual_seed(0))).requires_grad_()
    for weight in (torch.ones(3, 4), class_weights(cls, 4)):  # the second: no AU ever has any other class
        value = loss(score, cls, weight)
        assert value.isfinite() and gradient(value, score).isfinite().all()


@pytest.mark.parametrize(
    "loss",
    [
        class_discriminator_loss,
        class_confusion_loss,
        reversal_loss,
        inverted_labels_loss,
        cross_entropy_discriminator_loss,
        max_entropy_loss,
    ],
)
def test_a_class_missing_in_the_batch_and_missing_labels(loss) -> None:  # type: ignore[no-untyped-def]
    weight = class_weights(tensor([[0, 1], [1, 2], [2, 0]]), 3)
    score = torch.randn(2, 2, 3, requires_grad=True)
    value = loss(score, tensor([[0, -1], [0, 1]]), weight)  # class 2 of the first AU is missing, one label too
    slope = gradient(value, score)
    assert value.isfinite() and slope[0, 1].eq(0).all() and slope[[0, 1, 1], [0, 0, 1]].ne(0).all()


def test_subjects_are_one_variable_with_many_classes() -> None:
    weight = torch.ones(1, 5)
    score = torch.full((4, 1, 5), 0.2)
    assert class_confusion_loss(score, tensor([[0], [1], [4], [-1]]), weight) == 0
    assert_close(class_discriminator_loss(score, tensor([[0], [1], [4], [-1]]), weight), tensor(4 * 0.2**2 + 0.8**2))


def test_without_any_label_every_supervised_loss_is_exactly_zero_and_has_no_slope() -> None:
    logit = torch.randn(3, 2, requires_grad=True)
    score = torch.randn(3, 2, 4, requires_grad=True)
    cls, weight = torch.full((3, 2), -1), torch.ones(2, 4)
    for value, of in (
        (au_loss(logit, torch.full((3, 2), NAN)), logit),
        (class_discriminator_loss(score, cls, weight), score),
        (class_confusion_loss(score, cls, weight), score),
        (class_discriminator_loss(score, torch.zeros_like(cls), torch.zeros(2, 4)), score),
        (reversal_loss(score, cls, weight), score),
        (inverted_labels_loss(score, cls, weight), score),
        (cross_entropy_discriminator_loss(score, cls, weight), score),
        (max_entropy_loss(score, cls, weight), score),
    ):
        assert value == 0
        assert gradient(value, of).eq(0).all()


# -- images --------------------------------------------------------------------------------------------------------


def test_reconstruction_is_the_mean_absolute_error() -> None:
    image = tensor([0.0, 0.5, -1.0], requires_grad=True)
    loss = reconstruction_loss(image, tensor([0.0, 0.0, 1.0]))
    assert_close(loss, tensor(2.5 / 3))
    assert_close(gradient(loss, image), tensor([0.0, 1.0, -1.0]) / 3)


def test_agreement_pulls_only_the_first() -> None:
    feature, target = tensor([1.0, 2.0], requires_grad=True), tensor([0.0, 4.0], requires_grad=True)
    loss = agreement_loss(feature, target)
    assert_close(loss, tensor(2.5))
    assert_close(gradient(loss, feature), tensor([1.0, -2.0]))
    assert not agreement_loss(torch.zeros(2), target).requires_grad


def test_least_squares_of_the_image_discriminator() -> None:
    real, fake = tensor([[1.0, 0.5]], requires_grad=True), tensor([[0.0, 1.0]], requires_grad=True)
    loss = lsgan_d_loss(real, fake)
    assert_close(loss, tensor(0.5 * (0.25 / 2 + 1 / 2)))
    assert_close(gradient(loss, real), tensor([[0.0, -0.25]]))
    assert lsgan_d_loss(torch.ones(3), torch.zeros(3)) == 0
    assert_close(lsgan_g_loss(fake), tensor(0.5))
    assert_close(gradient(lsgan_g_loss(fake), fake), tensor([[-1.0, 0.0]]))


def test_losses_of_half_precision_outputs_are_float32() -> None:
    half = torch.rand(2, 3, dtype=torch.bfloat16)
    assert au_loss(half, torch.rand(2, 3)).dtype == torch.float32
    assert reconstruction_loss(half, half).dtype == agreement_loss(half, half).dtype == torch.float32
