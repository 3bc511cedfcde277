// The parts that pages are put together from.
export * from "./ui/format.js";
export * from "./ui/parts.js";
export * from "./ui/code.js";
export * from "./ui/dialog.js";
export * from "./ui/table.js";
