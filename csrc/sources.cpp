// What the library was built from: csrc/digest.py writes it, whoever has to tell a stale library from a fresh one reads
// it in the file, without loading it.
#ifndef IFDD_SOURCES
#define IFDD_SOURCES "unknown"
#endif

extern "C" {
extern const char ifdd_sources[];
const char ifdd_sources[] = "ifdd-sources:" IFDD_SOURCES;
}
