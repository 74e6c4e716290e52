// Static shared memory by name: the thread-local symbols of this module.
#include <cxxabi.h>
#include <elf.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>

#include "simt/memory.h"

namespace simt {
namespace {

// "tile" of "kernel(float*)::tile".
std::string last_part(const char* symbol) {
  int status = 0;
  char* text = abi::__cxa_demangle(symbol, nullptr, nullptr, &status);
  std::string name = status == 0 ? text : symbol;
  std::free(text);
  const size_t colon = name.rfind("::");
  return colon == std::string::npos ? name : name.substr(colon + 2);
}

std::vector<StaticVariable> read_symbols(const unsigned char* file) {
  std::vector<StaticVariable> found;
  const auto* header = reinterpret_cast<const Elf64_Ehdr*>(file);
  const auto* sections = reinterpret_cast<const Elf64_Shdr*>(file + header->e_shoff);
  for (int s = 0; s < header->e_shnum; ++s) {
    if (sections[s].sh_type != SHT_SYMTAB) continue;
    const auto* symbols = reinterpret_cast<const Elf64_Sym*>(file + sections[s].sh_offset);
    const auto* names =
        reinterpret_cast<const char*>(file + sections[sections[s].sh_link].sh_offset);
    for (size_t i = 0; i < sections[s].sh_size / sizeof(Elf64_Sym); ++i) {
      const Elf64_Sym& symbol = symbols[i];
      if (ELF64_ST_TYPE(symbol.st_info) != STT_TLS || symbol.st_shndx == SHN_UNDEF) continue;
      const std::string name = names + symbol.st_name;
      const bool guard = name.compare(0, 4, "_ZGV") == 0;
      found.push_back({symbol.st_value, symbol.st_size, last_part(name.c_str()), guard});
    }
  }
  std::sort(found.begin(), found.end(),
            [](const auto& a, const auto& b) { return a.offset < b.offset; });
  return found;
}

}  // namespace

std::vector<StaticVariable> static_variables() {
  std::vector<StaticVariable> found;
  const int fd = open(module_path().c_str(), O_RDONLY);
  struct stat info;
  if (fd >= 0 && fstat(fd, &info) == 0) {
    void* file = mmap(nullptr, size_t(info.st_size), PROT_READ, MAP_PRIVATE, fd, 0);
    if (file != MAP_FAILED) {
      found = read_symbols(static_cast<const unsigned char*>(file));
      munmap(file, size_t(info.st_size));
    }
  }
  if (fd >= 0) close(fd);
  return found;
}

}  // namespace simt
