#pragma once

#include <atomic>
#include <type_traits>

// Atomic operations and memory fences. One thread of a kernel runs at a time, uninterrupted, so plain operations are
// atomic.
template <typename T>
T atomicExch(T* address, std::type_identity_t<T> value) {
  const T old = *address;
  *address = value;
  return old;
}
template <typename T>
T atomicCAS(T* address, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  const T old = *address;
  if (old == expected) {
    *address = value;
  }
  return old;
}
template <typename T>
T atomicAdd(T* address, std::type_identity_t<T> value) {
  return atomicExch(address, static_cast<T>(*address + value));
}
template <typename T>
T atomicSub(T* address, std::type_identity_t<T> value) {
  return atomicExch(address, static_cast<T>(*address - value));
}
template <typename T>
T atomicMin(T* address, std::type_identity_t<T> value) {
  return atomicExch(address, value < *address ? value : *address);
}
template <typename T>
T atomicMax(T* address, std::type_identity_t<T> value) {
  return atomicExch(address, *address < value ? value : *address);
}
template <typename T>
T atomicAnd(T* address, std::type_identity_t<T> value) {
  return atomicExch(address, *address & value);
}
template <typename T>
T atomicOr(T* address, std::type_identity_t<T> value) {
  return atomicExch(address, *address | value);
}
template <typename T>
T atomicXor(T* address, std::type_identity_t<T> value) {
  return atomicExch(address, *address ^ value);
}
// Counts up to bound, then restarts at zero.
inline unsigned atomicInc(unsigned* address, unsigned bound) {
  return atomicExch(address, *address >= bound ? 0 : *address + 1);
}
inline unsigned atomicDec(unsigned* address, unsigned bound) {
  return atomicExch(address, *address == 0 || *address > bound ? bound : *address - 1);
}

inline void __threadfence_block() { std::atomic_signal_fence(std::memory_order_seq_cst); }
inline void __threadfence() { std::atomic_thread_fence(std::memory_order_seq_cst); }
inline void __threadfence_system() { std::atomic_thread_fence(std::memory_order_seq_cst); }
