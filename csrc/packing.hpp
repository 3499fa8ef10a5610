// Aligned arrays: what the kernels read and write.
#pragma once

#include <cstddef>
#include <new>
#include <utility>

namespace mfmd {

template <class T> class Buffer {
 public:
  Buffer() = default;
  Buffer(Buffer&& other) noexcept : data_(std::exchange(other.data_, nullptr)), capacity_(std::exchange(other.capacity_, 0)) {}
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { release(); }

  // Room for `size` elements; what it held is lost when it grows.
  T* resize(std::size_t size) {
    if (size > capacity_) {
      release();
      capacity_ = size + size / 8;
      data_ = static_cast<T*>(::operator new(capacity_ * sizeof(T), std::align_val_t(64)));
    }
    return data_;
  }
  T* get() const { return data_; }

 private:
  void release() {
    if (data_) ::operator delete(data_, std::align_val_t(64));
    data_ = nullptr;
  }
  T* data_ = nullptr;
  std::size_t capacity_ = 0;
};

}  // namespace mfmd
