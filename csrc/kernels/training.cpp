// The multilinear maps that training spends its time in. The set is closed under differentiation (the adjoint of each
// is one of them again), so gradients of forces need no further kernel. Pairs come one of each (i, j) and (j, i); `first`,
// `neighbor` and `pair` list them in rows of atoms, so that sums are gathered here too: pair is p in the row of i, ~p in that of j.
#include "simd.hpp"

namespace mfmd {
namespace MFMD_ISA {

// out[a] = sum over pairs of a of w[pair] * y[neighbor]; w: [pairs][R][F], y, out: [atoms][C][F].
template <class T>
void training_gather(const T* w, const T* y, const int* first, const int* neighbor, const int* pair, T* out, int R, int F, int begin, int end) {
  constexpr int W = Simd<T>::width;
  const std::size_t C = static_cast<std::size_t>(R * R);
  for (int a = begin; a < end; ++a) {
    T* o = out + static_cast<std::size_t>(a) * C * F;
    for (std::size_t k = 0; k < C * F; ++k) o[k] = 0;
    for (int q = first[a]; q < first[a + 1]; ++q) {
      const T* weight = w + static_cast<std::size_t>(pair[q] < 0 ? ~pair[q] : pair[q]) * R * F;
      const T* from = y + static_cast<std::size_t>(neighbor[q]) * C * F;
      for (int part = 0; part < R; ++part)
        for (int f = 0; f < F; f += W)
          for (int k = tensor::first(part); k < tensor::first(part + 1); ++k)
            at(o + k * F + f) += at(weight + part * F + f) * at(from + k * F + f);
    }
  }
}

// out[p][part] = sum over the part's components of a[i] b[j] + a[j] b[i]; a, b: [atoms][C][F], out: [pairs][R][F].
template <class T>
void training_dot(const T* a, const T* b, const int* i, const int* j, T* out, int R, int F, int begin, int end) {
  constexpr int W = Simd<T>::width;
  const std::size_t row = static_cast<std::size_t>(R * R) * static_cast<std::size_t>(F);
  for (int p = begin; p < end; ++p) {
    const T *ai = a + i[p] * row, *aj = a + j[p] * row, *bi = b + i[p] * row, *bj = b + j[p] * row;
    for (int part = 0; part < R; ++part)
      for (int f = 0; f < F; f += W) {
        Vec<T> sum{};
        for (int k = tensor::first(part); k < tensor::first(part + 1); ++k)
          sum += at(ai + k * F + f) * at(bj + k * F + f) + at(aj + k * F + f) * at(bi + k * F + f);
        at(out + (static_cast<std::size_t>(p) * R + part) * F + f) = sum;
      }
  }
}

// out = a b + b a for every atom and channel; [atoms][C][F].
template <class T> void training_anticommutator(const T* a, const T* b, T* out, int R, int F, int begin, int end) {
  with_rank(R - 1, [&](auto rank) {
    constexpr int RANK = decltype(rank)::value, W = Simd<T>::width, C = tensor::components(RANK);
    for (int n = begin; n < end; ++n)
      for (int f = 0; f < F; f += W) {
        const std::size_t row = static_cast<std::size_t>(n) * C * F + f;
        Vec<T> va[C], vb[C], p[C];
        for (int k = 0; k < C; ++k) va[k] = at(a + row + k * F), vb[k] = at(b + row + k * F);
        tensor::anticommutator<RANK, T>(va, vb, p);
        for (int k = 0; k < C; ++k) at(out + row + k * F) = p[k];
      }
  });
}

// The embedding's sum. With c over components, f over channels, and s = -1 for the components of A (directions turn round with the pair), else 1,
//   Q(w, d, a, b, g) = sum over pairs p, c, f of w[p, part(c), f] d[p, c] ((a_i + b_j)[f] g_i[c, f] + s (a_j + b_i)[f] g_j[c, f]).
// Below are its gradients in g (the sum itself), in w, in d, and in a and b.
// w: [pairs][R][F], d: [pairs][C], a, b: [atoms][F], g: [atoms][C][F].
template <class T>
void training_embed(const T* w, const T* d, const T* a, const T* b, const int* first, const int* neighbor, const int* pair, T* out, int R, int F, int begin, int end) {
  constexpr int W = Simd<T>::width;
  const std::size_t C = static_cast<std::size_t>(R * R);
  for (int i = begin; i < end; ++i) {
    T* o = out + static_cast<std::size_t>(i) * C * F;
    for (std::size_t k = 0; k < C * F; ++k) o[k] = 0;
    for (int q = first[i]; q < first[i + 1]; ++q) {
      const bool turned = pair[q] < 0;
      const std::size_t p = static_cast<std::size_t>(turned ? ~pair[q] : pair[q]);
      const T* other = b + static_cast<std::size_t>(neighbor[q]) * F;
      for (int f = 0; f < F; f += W) {
        const Vec<T> sum = at(a + static_cast<std::size_t>(i) * F + f) + at(other + f);
        for (int part = 0; part < R; ++part) {
          const Vec<T> weight = at(w + (p * R + part) * F + f) * (part == 1 && turned ? -sum : sum);
          for (int k = tensor::first(part); k < tensor::first(part + 1); ++k) at(o + k * F + f) += d[p * C + k] * weight;
        }
      }
    }
  }
}

template <class T>
void training_embed_weights(const T* d, const T* a, const T* b, const T* g, const int* i, const int* j, T* out, int R, int F, int begin, int end) {
  constexpr int W = Simd<T>::width;
  const std::size_t C = static_cast<std::size_t>(R * R), n = static_cast<std::size_t>(F);
  for (std::size_t p = static_cast<std::size_t>(begin); p < static_cast<std::size_t>(end); ++p) {
    const std::size_t ip = static_cast<std::size_t>(i[p]), jp = static_cast<std::size_t>(j[p]);
    for (int f = 0; f < F; f += W) {
      const Vec<T> there = at(a + ip * n + f) + at(b + jp * n + f), back = at(a + jp * n + f) + at(b + ip * n + f);
      for (int part = 0; part < R; ++part) {
        Vec<T> gi{}, gj{};
        for (int k = tensor::first(part); k < tensor::first(part + 1); ++k)
          gi += d[p * C + k] * at(g + (ip * C + k) * n + f), gj += d[p * C + k] * at(g + (jp * C + k) * n + f);
        at(out + (p * R + part) * n + f) = there * gi + (part == 1 ? -back : back) * gj;
      }
    }
  }
}

template <class T>
void training_embed_directions(const T* w, const T* a, const T* b, const T* g, const int* i, const int* j, T* out, int R, int F, int begin, int end) {
  constexpr int W = Simd<T>::width;
  const std::size_t C = static_cast<std::size_t>(R * R), n = static_cast<std::size_t>(F);
  for (std::size_t p = static_cast<std::size_t>(begin); p < static_cast<std::size_t>(end); ++p) {
    const std::size_t ip = static_cast<std::size_t>(i[p]), jp = static_cast<std::size_t>(j[p]);
    Vec<T> sums[9] = {};
    for (int f = 0; f < F; f += W) {
      const Vec<T> there = at(a + ip * n + f) + at(b + jp * n + f), back = at(a + jp * n + f) + at(b + ip * n + f);
      for (int part = 0; part < R; ++part) {
        const Vec<T> weight = at(w + (p * R + part) * n + f), to = weight * there, from = weight * (part == 1 ? -back : back);
        for (int k = tensor::first(part); k < tensor::first(part + 1); ++k)
          sums[k] += to * at(g + (ip * C + k) * n + f) + from * at(g + (jp * C + k) * n + f);
      }
    }
    for (std::size_t k = 0; k < C; ++k) out[p * C + k] = total<T>(sums[k]);
  }
}

template <class T>
void training_embed_values(const T* w, const T* d, const T* g, const int* first, const int* neighbor, const int* pair, T* to_a, T* to_b, int R, int F, int begin, int end) {
  constexpr int W = Simd<T>::width;
  const std::size_t C = static_cast<std::size_t>(R * R), n = static_cast<std::size_t>(F);
  for (std::size_t i = static_cast<std::size_t>(begin); i < static_cast<std::size_t>(end); ++i) {
    for (std::size_t f = 0; f < n; ++f) to_a[i * n + f] = to_b[i * n + f] = 0;
    for (int q = first[i]; q < first[i + 1]; ++q) {
      const bool turned = pair[q] < 0;
      const std::size_t p = static_cast<std::size_t>(turned ? ~pair[q] : pair[q]), other = static_cast<std::size_t>(neighbor[q]);
      for (int f = 0; f < F; f += W)
        for (int part = 0; part < R; ++part) {
          Vec<T> own{}, far{};
          for (int k = tensor::first(part); k < tensor::first(part + 1); ++k)
            own += d[p * C + k] * at(g + (i * C + k) * n + f), far += d[p * C + k] * at(g + (other * C + k) * n + f);
          const Vec<T> weight = at(w + (p * R + part) * n + f);
          at(to_a + i * n + f) += weight * (part == 1 && turned ? -own : own);
          at(to_b + i * n + f) += weight * (part == 1 && !turned ? -far : far);
        }
    }
  }
}

// y = x / (|x|^2 + 1) over the components; [atoms][C][F]. With g, the gradient J g (J is symmetric); with h too, that of <h, J g> in x.
template <class T> void training_normalize(const T* x, const T* g, const T* h, T* out, int C, int F, int begin, int end) {
  constexpr int W = Simd<T>::width;
  for (int n = begin; n < end; ++n)
    for (int f = 0; f < F; f += W) {
      const std::size_t row = static_cast<std::size_t>(n) * C * F + f;
      Vec<T> q = Vec<T>{} + T(1), gx{}, hx{}, gh{};
      for (int k = 0; k < C; ++k) {
        const std::size_t at_k = row + static_cast<std::size_t>(k) * F;
        q += at(x + at_k) * at(x + at_k);
        if (g) gx += at(g + at_k) * at(x + at_k);
        if (h) hx += at(h + at_k) * at(x + at_k), gh += at(g + at_k) * at(h + at_k);
      }
      const Vec<T> once = T(1) / q, twice = T(-2) * once * once;
      const Vec<T> along = h ? twice * gh - T(4) * twice * once * gx * hx : twice * gx;
      for (int k = 0; k < C; ++k) {
        const std::size_t at_k = row + static_cast<std::size_t>(k) * F;
        if (h) at(out + at_k) = along * at(x + at_k) + twice * (gx * at(h + at_k) + hx * at(g + at_k));
        else if (g) at(out + at_k) = once * at(g + at_k) + along * at(x + at_k);
        else at(out + at_k) = once * at(x + at_k);
      }
    }
}

// out = g h silu''(x), n numbers.
template <class T> void training_silu_second(const T* x, const T* g, const T* h, T* out, int begin, int end) {
  constexpr int W = Simd<T>::width;
  const auto second = [](const Vec<T>& v) {
    const Vec<T> s = T(1) / (T(1) + exponential<T>(-v));
    return s * (T(1) - s) * (T(2) + v * (T(1) - T(2) * s));
  };
  int k = begin;
  for (; k + W <= end; k += W) at(out + k) = at(g + k) * at(h + k) * second(at(x + k));
  for (; k < end; ++k) out[k] = g[k] * h[k] * second(Vec<T>{} + x[k])[0];
}

#define MFMD_INSTANTIATE(T)                                                                                                     \
  template void training_gather<T>(const T*, const T*, const int*, const int*, const int*, T*, int, int, int, int);             \
  template void training_dot<T>(const T*, const T*, const int*, const int*, T*, int, int, int, int);                            \
  template void training_anticommutator<T>(const T*, const T*, T*, int, int, int, int);                                         \
  template void training_embed<T>(const T*, const T*, const T*, const T*, const int*, const int*, const int*, T*, int, int, int, int); \
  template void training_embed_weights<T>(const T*, const T*, const T*, const T*, const int*, const int*, T*, int, int, int, int); \
  template void training_embed_directions<T>(const T*, const T*, const T*, const T*, const int*, const int*, T*, int, int, int, int); \
  template void training_normalize<T>(const T*, const T*, const T*, T*, int, int, int, int);                                   \
  template void training_silu_second<T>(const T*, const T*, const T*, T*, int, int);                                           \
  template void training_embed_values<T>(const T*, const T*, const T*, const int*, const int*, const int*, T*, T*, int, int, int, int);
MFMD_INSTANTIATE(float)
MFMD_INSTANTIATE(double)

}  // namespace MFMD_ISA
}  // namespace mfmd
