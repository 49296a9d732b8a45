#pragma once

// dim3 and CUDA's small vectors, with CUDA's alignment.
struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_size = 1, unsigned y_size = 1, unsigned z_size = 1) : x(x_size), y(y_size), z(z_size) {}
};

#define DLF_VECTOR_TYPES(name, type)                                                     \
  struct name##1 { type x; };                                                            \
  struct alignas(2 * sizeof(type)) name##2 { type x, y; };                               \
  struct alignas(sizeof(type) < 4 ? 4 * sizeof(type) : 16) name##4 { type x, y, z, w; }; \
  constexpr name##1 make_##name##1(type x) { return {x}; }                               \
  constexpr name##2 make_##name##2(type x, type y) { return {x, y}; }                    \
  constexpr name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }

#define DLF_VECTOR_TYPE_3(name, type) \
  struct name##3 { type x, y, z; };

#define DLF_MAKE_3(name, type) \
  constexpr name##3 make_##name##3(type x, type y, type z) { return {x, y, z}; }

DLF_VECTOR_TYPES(char, signed char)
DLF_VECTOR_TYPES(uchar, unsigned char)
DLF_VECTOR_TYPES(short, short)
DLF_VECTOR_TYPES(ushort, unsigned short)
DLF_VECTOR_TYPES(int, int)
DLF_VECTOR_TYPES(uint, unsigned)
DLF_VECTOR_TYPES(longlong, long long)
DLF_VECTOR_TYPES(ulonglong, unsigned long long)
DLF_VECTOR_TYPES(float, float)
DLF_VECTOR_TYPES(double, double)

DLF_VECTOR_TYPE_3(char, signed char)
DLF_VECTOR_TYPE_3(uchar, unsigned char)
DLF_VECTOR_TYPE_3(short, short)
DLF_VECTOR_TYPE_3(ushort, unsigned short)
DLF_VECTOR_TYPE_3(int, int)
DLF_VECTOR_TYPE_3(longlong, long long)
DLF_VECTOR_TYPE_3(ulonglong, unsigned long long)
DLF_VECTOR_TYPE_3(float, float)
DLF_VECTOR_TYPE_3(double, double)

DLF_MAKE_3(int, int)
DLF_MAKE_3(uint, unsigned)
DLF_MAKE_3(float, float)
DLF_MAKE_3(double, double)

#undef DLF_VECTOR_TYPES
#undef DLF_VECTOR_TYPE_3
#undef DLF_MAKE_3
