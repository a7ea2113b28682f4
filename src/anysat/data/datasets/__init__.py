"""One file per dataset; each exports a `DATASET` record. A new file here is found by its name."""
