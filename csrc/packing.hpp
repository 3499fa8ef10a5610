// Aligned arrays: what the kernels read and write.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <new>
#include <utility>

namespace mfmd {

template <class T> class Buffer {
 public:
  Buffer() = default;
  Buffer(Buffer&& other) noexcept : data_(std::exchange(other.data_, nullptr)), capacity_(std::exchange(other.capacity_, 0)), large_(other.large_) {}
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { release(); }

  // Room for `size` elements; what it held is lost when it grows.
  T* resize(std::size_t size) {
    if (size > capacity_) {
      release();
      capacity_ = size + size / 8;
      const std::size_t bytes = capacity_ * sizeof(T);
      large_ = bytes >= kHugePage;
      data_ = static_cast<T*>(::operator new(bytes, alignment()));
#if defined(MADV_HUGEPAGE)
      // Gathers jump from row to row, each on a page of its own. Where the system has no huge pages, nothing changes.
      if (large_) static_cast<void>(madvise(data_, bytes, MADV_HUGEPAGE));
#endif
    }
    return data_;
  }
  T* get() const { return data_; }

 private:
  static constexpr std::size_t kHugePage = std::size_t{1} << 21;
  std::align_val_t alignment() const { return std::align_val_t(large_ ? kHugePage : 64); }
  void release() {
    if (data_) ::operator delete(data_, alignment());
    data_ = nullptr;
  }
  T* data_ = nullptr;
  std::size_t capacity_ = 0;
  bool large_ = false;
};

}  // namespace mfmd
