"""One change of a network's connections, worked out before any of it is applied: prune, drop, share out, grow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sparse_core.choosing import HARD, Choosing
from sparse_core.draws import among, largest, whole
from sparse_core.drop import DropRule
from sparse_core.grow import GrowRule
from sparse_core.redistribution import REDISTRIBUTIONS, apportion
from sparse_core.topology import Regrow, Rewiring
from sparse_core.view import LayerView

Views = Mapping[str, LayerView]
NOTHING = torch.empty(0, dtype=torch.int64)


@dataclass(frozen=True)
class Method:
    """The rules of a change.

    Attributes:
        drop: its name for errors and the rule; both None where nothing is exchanged.
        grow: as `drop`.
        prune: the rule by which the network comes down to a smaller count, as `drop`.
        regrow: see `Sparsifier`.
        redistribute: name of a redistribution; None: each layer grows as many as it lost.
        chains: for a layer, the one whose outputs are its inputs: what a drop leaves without input or output goes, too.
        dropping: how hard connections are chosen to go.
        growing: how hard positions are chosen to grow.
    """

    drop: tuple[str, DropRule] | None
    grow: tuple[str, GrowRule] | None
    prune: tuple[str, DropRule] | None = None
    regrow: Regrow = "no"
    redistribute: str | None = None
    chains: Mapping[str, str] | None = None
    dropping: Choosing = HARD
    growing: Choosing = HARD

    def change(
        self,
        views: Views,
        fraction: float,
        target: Mapping[str, int] | int | None = None,
        lost: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Rewiring]:
        """What becomes of every layer.

        Args:
            views: of all layers, by name.
            fraction: share ζ of the movable connections that are exchanged.
            target: how many movable connections there are to be afterwards, in all or by layer; None: as many as now.
            lost: by layer, indices of movable connections that go first, and are not replaced.
        """
        pruned = self._prune(views, target)
        if lost is not None:
            pruned = {name: torch.cat([pruned[name], lost[name]]).unique() for name in views}
        free = {name: view if self.regrow == "no" else view.freed(pruned[name]) for name, view in views.items()}
        left = {name: view.without(pruned[name]) for name, view in free.items()}
        counts = {name: whole(fraction * view.count) for name, view in left.items()}
        wider = _missing(left, target)
        if self.drop is not None and not self._by_layer:
            chosen = self._exchange_network(left, counts)
        elif self.drop is not None:
            chosen = {name: self._exchange(view, counts[name]) for name, view in left.items()}
        else:
            chosen = {name: (NOTHING, NOTHING) for name in left}
        rewirings = {}
        for name, view in views.items():
            dropped, grown = chosen[name]
            kept = torch.ones(view.count, dtype=torch.bool)
            kept[pruned[name]] = False
            gone = torch.cat([pruned[name], kept.nonzero().squeeze(1)[dropped]]).sort().values
            more = self._widen(left[name], dropped, grown, wider[name])
            grown = more if not grown.numel() else torch.cat([grown, more]).sort().values
            rewirings[name] = Rewiring.of(view.shape, view.positions, gone, grown, self.regrow)
        return rewirings

    @property
    def _by_layer(self) -> bool:
        """Whether every layer exchanges as many as it loses by a rule that looks at it alone."""
        assert self.drop is not None
        return not (self.drop[1].network or self.drop[1].own_count or self.redistribute or self.chains)

    def _prune(self, views: Views, target: Mapping[str, int] | int | None) -> dict[str, Tensor]:
        """Indices that go because there are to be fewer."""
        nothing = dict.fromkeys(views, NOTHING)
        if target is None or self.prune is None:
            return nothing
        name, rule = self.prune
        if rule.network:
            wanted = target if isinstance(target, int) else sum(target.values())
            count = sum(view.count for view in views.values()) - wanted
            if count <= 0:
                return nothing
            found: dict[str, Tensor] = rule.choose(views, count)
            _check_all(name, found, views, count)
            return found
        assert not isinstance(target, int)
        excess = {layer: max(view.count - target[layer], 0) for layer, view in views.items()}
        return {layer: _chosen(name, rule, view, excess[layer]) for layer, view in views.items()}

    def _exchange(self, view: LayerView, count: int) -> tuple[Tensor, Tensor]:
        """Indices to drop and positions to grow in one layer, as many."""
        assert self.drop is not None
        (drop_name, drop), grow = self.drop, self.grow
        if self.regrow == "no":
            count = min(count, view.vacant_count)
        view = replace(view, choosing=self.dropping)
        if drop.plans:
            dropped, grown = drop.choose(view, count)
            _check(drop_name, dropped, dropped.numel(), view.count)
            _check_grown(drop_name, grown, dropped.numel(), view.freed(dropped))
            return dropped, grown
        assert grow is not None
        dropped = _chosen(drop_name, drop, view, count)
        after = view
        if self.regrow != "no":
            after = view.freed(dropped)
            # Constraints may forbid the very positions that were dropped. In place nothing comes that was not there.
            if after.vacant_count < count and not grow[1].in_place:
                count = view.vacant_count
                dropped, after = _chosen(drop_name, drop, view, count), view
        after = replace(after, choosing=self.growing, dropped=view.positions[dropped])
        grown = grow[1].choose(after, count)
        _check_grown(grow[0], grown, count, after)
        return dropped, grown

    def _exchange_network(self, views: Views, counts: Mapping[str, int]) -> dict[str, tuple[Tensor, Tensor]]:
        """As `_exchange`, for rules that look across layers: their total stays, or each layer's after chain removal."""
        assert self.drop is not None
        assert self.grow is not None
        (name, rule), (grow_name, grow) = self.drop, self.grow
        choosing = {layer: replace(view, choosing=self.dropping) for layer, view in views.items()}
        if rule.network:
            total = sum(counts.values())
            dropped: dict[str, Tensor] = rule.choose(choosing, total)
            _check_all(name, dropped, views, None if rule.own_count else total)
        else:
            dropped = {
                layer: _chosen(name, rule, view, counts[layer], rule.own_count) for layer, view in choosing.items()
            }
        if self.chains:
            dropped = _without_dead_ends(views, dropped, self.chains)
        after, wanted = self._share_out(views, dropped)
        chosen = {}
        for layer, view in after.items():
            view = replace(view, choosing=self.growing)
            grown = grow.choose(view, wanted[layer])
            _check_grown(grow_name, grown, wanted[layer], view)
            chosen[layer] = dropped[layer], grown
        return chosen

    def _share_out(self, views: Views, dropped: dict[str, Tensor]) -> tuple[dict[str, LayerView], dict[str, int]]:
        """Layers after the drop, and how many connections each grows; `dropped` gets smaller where there is no room."""
        after = {layer: self._after(view, dropped[layer]) for layer, view in views.items()}
        if self.redistribute:
            lost, room = (sum(each) for each in zip(*_lost_and_room(after, dropped), strict=True))
            if room < lost:
                # Constraints forbid the very places that became free. The strongest of what was to go stay.
                fits = [view.vacant_count for view in views.values()]
                sizes = [float(indices.numel()) for indices in dropped.values()]
                limits = apportion(sizes, [indices.numel() for indices in dropped.values()], sum(fits))
                after = self._trim(views, dropped, dict(zip(views, limits, strict=True)))
            weights = REDISTRIBUTIONS[self.redistribute](after)
            lost = sum(indices.numel() for indices in dropped.values())
            counts = apportion([weights[layer] for layer in views], [v.vacant_count for v in after.values()], lost)
            return after, dict(zip(views, counts, strict=True))
        short = {
            layer: views[layer].vacant_count
            for layer, (lost, room) in zip(views, _lost_and_room(after, dropped), strict=True)
            if room < lost
        }
        after |= self._trim(views, dropped, short)
        return after, {layer: indices.numel() for layer, indices in dropped.items()}

    def _trim(self, views: Views, dropped: dict[str, Tensor], limits: Mapping[str, int]) -> dict[str, LayerView]:
        """Let no more go than these, the weakest; their places stay taken."""
        after = {}
        for layer, limit in limits.items():
            indices = dropped[layer]
            dropped[layer] = indices[largest(-views[layer].values[indices].abs(), min(limit, indices.numel()))]
            after[layer] = replace(views[layer], dropped=views[layer].positions[dropped[layer]])
        return after

    def _after(self, view: LayerView, dropped: Tensor) -> LayerView:
        """A layer without what was dropped; its places are vacant where it may grow again."""
        return replace(view if self.regrow == "no" else view.freed(dropped), dropped=view.positions[dropped])

    def _widen(self, view: LayerView, dropped: Tensor, grown: Tensor, count: int) -> Tensor:
        """Positions that come because there are to be more."""
        if not count:
            return grown.new_empty(0)
        after = self._after(view, dropped)
        taken = torch.cat([after.blocked, grown]).sort().values
        after = replace(after, blocked=taken, choosing=self.growing)
        count = min(count, after.vacant_count)
        if self.grow is None:
            return after.sample_vacant(count)
        more = self.grow[1].choose(after, count)
        _check_grown(self.grow[0], more, count, after)
        return more


def _lost_and_room(after: Views, dropped: Mapping[str, Tensor]) -> list[tuple[int, int]]:
    return [(dropped[layer].numel(), view.vacant_count) for layer, view in after.items()]


def _missing(views: Views, target: Mapping[str, int] | int | None) -> dict[str, int]:
    """How many connections each layer is to have more than now."""
    if target is None:
        return dict.fromkeys(views, 0)
    if not isinstance(target, int):
        return {name: max(target[name] - view.count, 0) for name, view in views.items()}
    room = [view.vacant_count for view in views.values()]
    more = target - sum(view.count for view in views.values())
    return dict(zip(views, apportion([float(size) for size in room], room, more), strict=True))


def _without_dead_ends(views: Views, dropped: Mapping[str, Tensor], chains: Mapping[str, str]) -> dict[str, Tensor]:
    """`dropped`, and what it leaves without a way in or out: connections of neurons that nothing enters or leaves."""
    going = dict(dropped)
    while True:
        before = sum(indices.numel() for indices in going.values())
        for below, above in chains.items():
            if not {below, above} <= views.keys():  # one of them stays as it is
                continue
            upper, lower = views[above], views[below]
            spread = lower.shape[1] // upper.shape[0]
            up, down = (view.freed(going[name]).blocked for name, view in ((above, upper), (below, lower)))
            entered = torch.bincount(up // upper.shape[1], minlength=upper.shape[0]) > 0
            left = torch.bincount(down % lower.shape[1] // spread, minlength=upper.shape[0]) > 0
            dead_in = ~left[upper.positions // upper.shape[1]]
            dead_out = ~entered[lower.positions % lower.shape[1] // spread]
            for name, dead in ((above, dead_in), (below, dead_out)):
                dead[going[name]] = True
                going[name] = dead.nonzero().squeeze(1)
        if sum(indices.numel() for indices in going.values()) == before:
            return going


def _chosen(name: str, rule: DropRule, view: LayerView, count: int, own_count: bool = False) -> Tensor:
    indices: Tensor = rule.choose(view, count)
    _check(name, indices, indices.numel() if own_count else count, view.count)
    return indices


def _check_all(name: str, found: Mapping[str, Tensor], views: Views, count: int | None) -> None:
    if set(found) != set(views) or (count is not None and sum(each.numel() for each in found.values()) != count):
        raise RuntimeError(f"rule {name!r} must return indices for every layer, {count} in all")
    for layer, view in views.items():
        _check(name, found[layer], found[layer].numel(), view.count)


def _check(rule: str, chosen: Tensor, count: int, limit: int) -> None:
    if not isinstance(chosen, Tensor):
        raise RuntimeError(f"rule {rule!r} must return a tensor of {count} indices, got {type(chosen).__name__}")
    fits = chosen.shape == (count,) and bool((chosen.diff() > 0).all())
    if not fits or (count and not 0 <= int(chosen[0]) <= int(chosen[-1]) < limit):
        raise RuntimeError(
            f"rule {rule!r} must return {count} distinct indices in ascending order within [0, {limit}), "
            f"got {tuple(chosen.shape)}: {chosen.tolist()[:5]}…"
        )


def _check_grown(rule: str, grown: Tensor, count: int, view: LayerView) -> None:
    _check(rule, grown, count, view.shape[0] * view.shape[1])
    if bool(among(grown, view.blocked).any()):
        raise RuntimeError(f"grow rule {rule!r} chose a position that is taken; it must choose vacant ones")
