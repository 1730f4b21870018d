"""The relaxation without those p that hardly any row sees: a smaller Z, of which everything else follows.

Let E be kinks whose p only a few rows see, as within a pooling window, or of the last layer. Then Z_EE is block
diagonal, with a small block for each of these cells, and with r for 1, δ and the other p

    S = Z_rr − Z_rE Z_EE⁻¹ Z_Er,   det Z = det Z_EE det S,
    aᵀZ⁻¹b = âᵀS⁻¹b̂ + a_Eᵀ Z_EE⁻¹ b_E,   â = a_r − Z_rE Z_EE⁻¹ a_E.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from .relaxation import Relaxation, scaled_best

FEW = 8  # kinks of a cell and rows that see them, at most


@dataclass(frozen=True)
class Cells:
    """Cells of one shape. gone: (C, S) their kinks. seeing: (C, W) the rows that see them: their own first, in order.

    inner: (C, W, S) what each row sees of them. width: none of these rows sees more than so many of the columns r.
    """

    gone: Tensor
    seeing: Tensor
    inner: Tensor
    width: int

    @property
    def others(self) -> Tensor:
        """(C, W − S) kinks that are not gone."""
        return self.seeing[:, self.gone.shape[1] :]


@dataclass(frozen=True)
class Point:
    """Multipliers mu (M,) whose t is the largest there is. L: Cholesky factor of S without its first row and column.

    xi: (n,) the minimum of ξᵀZξ, what r is there. factors: of each set of cells, L_E (C, S, S) and L_E⁻¹ Z_Er (C, S,
    n). log_det: of Z_11.
    """

    mu: Tensor
    L: Tensor
    xi: Tensor
    factors: list[tuple[Tensor, Tensor]]
    log_det: float

    @property
    def t(self) -> float:
        return float(self.mu[0])


@dataclass(frozen=True)
class Shared:
    """Of functions with the same multipliers: each its best scale and t, (K,), and the minimum of ξᵀZξ, (K, N)."""

    at: Point
    scale: Tensor
    t: Tensor
    xi: Tensor


@dataclass(frozen=True)
class Reduced:
    """rows: (R, n) what the rows of the `relaxation` see of r. kept: (V,) its kinks. place: (G,) their columns, or −1.

    widths: (first row, end, how many columns these rows see) for each layer of rows.
    """

    relaxation: Relaxation
    rows: Tensor
    kept: Tensor
    place: Tensor
    cells: list[Cells]
    widths: list[tuple[int, int, int]]

    @classmethod
    def of(cls, relaxation: Relaxation) -> Reduced:
        """Of a batch of one."""
        rows, first, G = relaxation.rows[0], 1 + relaxation.span, relaxation.kinks
        sees = rows[:, first:] != 0
        found = _cells(sees)
        kept = torch.ones(G, dtype=torch.bool, device=rows.device)
        for gone, _ in found:
            kept[gone] = False
        at = kept.nonzero()[:, 0]
        place = torch.full_like(kept, -1, dtype=torch.long)
        place[at] = first + torch.arange(len(at), device=at.device)
        left = torch.cat([rows[:, :first], rows[:, first:][:, at]], 1)
        widths = torch.where(left != 0, 1 + torch.arange(left.shape[1], device=at.device), 0).amax(1)
        ends = [*relaxation.starts, G, len(rows)]
        layers = [(i, j, int(widths[i:j].max())) for i, j in zip(ends, ends[1:], strict=False) if j > i]
        shapes = defaultdict(list)
        for gone, seeing in found:
            width = max(w for i, j, w in layers if any(i <= row < j for row in seeing))
            shapes[len(gone), len(seeing), width].append((gone, seeing))
        cells = []
        for (_, _, width), several in shapes.items():
            E, readers = (torch.tensor([cell[i] for cell in several], device=at.device) for i in (0, 1))
            cells.append(Cells(E, readers, rows[readers[:, :, None], first + E[:, None]], width))
        return cls(relaxation, left, at, place, cells, layers)

    def point(self, mu: Tensor, c: Tensor) -> Point | None:
        """For multipliers mu (M,) and a function c (N,); None where Z_11 is not ≻ 0."""
        Z = self._matrix(mu, c)
        factors, log_det = [], 0.0
        for cells in self.cells:
            inside, across = self._cells_of_matrix(cells, mu, c)
            L, bad = torch.linalg.cholesky_ex(inside)
            if bool(bad.any()):
                return None
            root = torch.linalg.solve_triangular(L, across, upper=False)
            flat = root.flatten(0, 1)[:, : cells.width]
            Z[: cells.width, : cells.width].addmm_(flat.mT, flat, alpha=-1.0)
            log_det += float(L.diagonal(dim1=1, dim2=2).log().sum())
            factors.append((L, root))
        L, info = torch.linalg.cholesky_ex(Z[1:, 1:])
        if int(info):
            return None
        half = torch.linalg.solve_triangular(L, Z[1:, :1], upper=False)
        x = torch.linalg.solve_triangular(L.mT, half, upper=True)[:, 0]
        mu = mu.clone()
        mu[0] = Z[0, 0] - half.square().sum()
        if not bool(torch.isfinite(mu).all()):
            return None
        log_det += float(L.diagonal().log().sum())
        return Point(mu, L, torch.cat([torch.ones_like(x[:1]), -x]), factors, 2.0 * log_det)

    def _matrix(self, mu: Tensor, c: Tensor) -> Tensor:
        """Z_rr for t = 0, (n, n)."""
        _, gamma, lam, f, h = (x[0] for x in self.relaxation.split(mu[None]))
        first, kept, rows = 1 + self.relaxation.span, self.kept, self.rows
        Z = rows.new_zeros(rows.shape[1], rows.shape[1])
        for i, j, width in self.widths:
            part = rows[i:j, :width]
            Z[:width, :width].addmm_((h[i:j, None] * part).mT, part)
        pn = 0.5 * lam[kept, None] * rows[kept]
        Z[first:] += pn
        Z[:, first:] += pn.mT
        linear = -0.5 * (h @ rows)
        linear[first:] -= 0.5 * f[kept]
        linear += 0.5 * torch.cat([c[:first], c[first:][kept]])
        Z[0] += linear
        Z[:, 0] += linear
        diagonal = Z.diagonal()
        diagonal[first:] += f[kept]
        diagonal[1:first] += gamma
        diagonal[0] -= gamma
        return Z

    def _cells_of_matrix(self, cells: Cells, mu: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Z_EE (C, S, S) and Z_Er (C, S, n)."""
        _, _, lam, f, h = (x[0] for x in self.relaxation.split(mu[None]))
        gone, seeing, inner, S = cells.gone, cells.seeing, cells.inner, cells.gone.shape[1]
        own, others = 0.5 * lam[gone][..., None], cells.others
        weighted = h[seeing][..., None] * inner
        pn = own * inner[:, :S]
        inside = weighted.mT @ inner + pn + pn.mT
        inside.diagonal(dim1=1, dim2=2).add_(f[gone])
        across = torch.zeros(*gone.shape, self.rows.shape[1], dtype=inner.dtype, device=inner.device)
        rows = self.rows[seeing, : cells.width]
        across[..., : cells.width] = weighted.mT @ rows + own * rows[:, :S]
        if others.numel():
            at = torch.arange(len(gone), device=gone.device)[:, None].expand_as(others)
            across.mT[at, self.place[others]] += 0.5 * lam[others][..., None] * inner[:, S:]
        linear = 0.5 * (c[1 + self.relaxation.span :][gone] - f[gone] - weighted.sum(1))
        across[..., 0] += linear
        return inside, across

    def xi(self, at: Point) -> Tensor:
        """(N,) the minimum of ξᵀZξ, all of it."""
        first = 1 + self.relaxation.span
        xi = at.xi.new_zeros(self.relaxation.size)
        xi[:first], xi[first + self.kept] = at.xi[:first], at.xi[first:]
        for cells, (L, root) in zip(self.cells, at.factors, strict=True):
            xi[first + cells.gone] = -torch.linalg.solve_triangular(L.mT, (root @ at.xi)[..., None], upper=True)[..., 0]
        return xi

    def halves(self, at: Point, V: Tensor) -> Tensor:
        """Columns x for each of V (k, N) whose products are those of V in the metric Z_11⁻¹, (N − 1, k)."""
        first, parts = 1 + self.relaxation.span, []
        hats = torch.cat([V[:, :first], V[:, first:][:, self.kept]], 1)
        for cells, (L, root) in zip(self.cells, at.factors, strict=True):
            inside = torch.linalg.solve_triangular(L, V[:, first:].mT[cells.gone], upper=False).flatten(0, 1)
            hats = hats - inside.mT @ root.flatten(0, 1)
            parts.append(inside)
        return torch.cat([torch.linalg.solve_triangular(at.L, hats[:, 1:].mT, upper=False), *parts])

    def shared(self, mu: Tensor, functions: Tensor) -> Shared | None:
        """For functions c·ξ (K, N): the best scale s of multipliers mu (M,), and what they prove; None for nothing.

        t(s) = c_0 + s m_00 − ‖c/2 + s m_0‖² in the metric (s M_11)⁻¹, M the matrix of mu.
        """
        at = self.point(mu, torch.zeros_like(functions[0]))
        if at is None:
            return None
        without_t, one = mu[None].clone(), torch.zeros_like(functions[0])
        without_t[:, 0], one[0] = 0.0, 1.0
        m = self.relaxation.acting(without_t, one)
        solved = self.halves(at, torch.cat([0.5 * functions, m]))
        scale, half = scaled_best(solved, m[0, 0])
        t = functions[:, 0] + scale * (m[0, 0] - half.square().sum(0))
        return Shared(at, scale, t, self._minima(at, half))

    def _minima(self, at: Point, half: Tensor) -> Tensor:
        """ξ (K, N), 1 and minus the x whose `halves` these (N − 1, K) are."""
        first, used = 1 + self.relaxation.span, len(at.L)
        x = torch.linalg.solve_triangular(at.L.mT, half[:used], upper=True)
        xi = half.new_zeros(half.shape[1], self.relaxation.size)
        xi[:, 0], xi[:, 1:first], xi[:, first + self.kept] = 1.0, -x[: first - 1].mT, -x[first - 1 :].mT
        for cells, (L, root) in zip(self.cells, at.factors, strict=True):
            inside = half[used : used + cells.gone.numel()].reshape(*cells.gone.shape, -1) - root[..., 1:] @ x
            used += cells.gone.numel()
            gone = torch.linalg.solve_triangular(L.mT, inside, upper=True)
            xi[:, first + cells.gone.flatten()] = -gone.flatten(0, 1).mT
        return xi

    def hats(self, at: Point) -> tuple[Tensor, Tensor]:
        """â of every p, (G, n), and of every row, (R, n)."""
        p, rows = self.rows.new_zeros(len(self.place), self.rows.shape[1]), self.rows.clone()
        p[self.kept, self.place[self.kept]] = 1.0
        for cells, (L, root) in zip(self.cells, at.factors, strict=True):
            back = torch.linalg.solve_triangular(L.mT, root, upper=True)
            p[cells.gone.flatten()] = -back.flatten(0, 1)
            rows.index_add_(0, cells.seeing.flatten(), (cells.inner @ back).flatten(0, 1), alpha=-1.0)
        return p, rows

    def inside(self, at: Point) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Of each set of cells: gone, seeing, and L_E⁻¹ a_E of their p, (C, S, S), and of the rows, (C, S, W)."""
        found = []
        for cells, (L, _) in zip(self.cells, at.factors, strict=True):
            p = torch.linalg.solve_triangular(L, torch.eye(L.shape[1], dtype=L.dtype, device=L.device), upper=False)
            found.append((cells.gone, cells.seeing, p, p @ cells.inner.mT))
        return found


def _cells(sees: Tensor) -> list[tuple[list[int], list[int]]]:
    """Kinks to eliminate together, ascending, and the rows that see them: their own first, in the same order.

    sees: (R, G), which row sees which p. Kinks that one row sees are in one cell; the least seen ones come first.
    """
    few = (sees.sum(0) <= FEW).nonzero()[:, 0]
    columns = {g: sees[:, g].nonzero()[:, 0].tolist() for g in few.tolist()}
    cell_of_row: dict[int, int] = {}
    members: dict[int, set[int]] = {}
    seeing: dict[int, set[int]] = {}
    for g in sorted(columns, key=lambda g: len(columns[g])):
        touched = {cell_of_row[r] for r in columns[g] if r in cell_of_row}
        gone = {g}.union(*(members[cell] for cell in touched))
        rows = set(columns[g]).union(*(seeing[cell] for cell in touched))
        if len(rows) > FEW:
            continue
        for cell in touched:
            del members[cell], seeing[cell]
        members[g], seeing[g] = gone, rows
        cell_of_row.update(dict.fromkeys(rows, g))
    return [(sorted(gone), sorted(gone) + sorted(seeing[cell] - gone)) for cell, gone in members.items()]
