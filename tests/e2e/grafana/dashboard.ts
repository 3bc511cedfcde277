// Grafana's own types of a dashboard, as its JSON is written: an enumeration there is one of its values.
import type { AnnotationQuery, Dashboard } from "@grafana/schema";

type Written<T> = T extends string ? `${T}` : T extends object ? { [K in keyof T]: Written<T[K]> } : T;
// What belongs to a source of data alone is not in the types: these three are Prometheus's.
type OfPrometheus = { expr: string; titleFormat: string; step: string };
export type Given = Omit<Written<Dashboard>, "annotations"> & {
  annotations: { list: (Written<AnnotationQuery> & OfPrometheus)[] };
};
