"""Telemetry: GPU and host sampling, series, run record; the only importer of NVML."""
