// Where nodes and arrows are drawn: layers along the flow, few crossings, arrows around nodes. Layers are columns from
// left to right; of a deep flow, which would be too wide that way, rows from top to bottom.
// The steps are those of layered graph drawing: break cycles, assign layers, order them by barycentres, place them.

export const WIDTH = 172;
export const HEIGHT = 46;
// Along: the length of a node along the flow; gap: between layers, room for what an arrow says; apart: the middles of two
// nodes of a layer; lane: the same, of arrows that pass a layer.
const ACROSS = { along: WIDTH, thick: HEIGHT, gap: 164, apart: 62, lane: 26 };
const DOWN = { along: HEIGHT, thick: WIDTH, gap: 66, apart: WIDTH + 22, lane: 40 };
const EDGE = 20; // Around the picture.

/** Turn round the arrows that close a cycle: answers the set of their ids. */
function backward(nodes, out) {
  const state = new Map();
  const turned = new Set();
  const visit = (start) => {
    const stack = [[start, 0]];
    state.set(start, 1);
    while (stack.length) {
      const top = stack[stack.length - 1];
      const next = out.get(top[0])?.[top[1]++];
      if (!next) {
        state.set(top[0], 2);
        stack.pop();
      } else if (state.get(next.target) === 1) turned.add(next.id);
      else if (!state.has(next.target)) {
        state.set(next.target, 1);
        stack.push([next.target, 0]);
      }
    }
  };
  // Where nothing comes in, the flow begins.
  const entered = new Set([...out.values()].flat().map((each) => each.target));
  for (const id of nodes) if (!entered.has(id) && !state.has(id)) visit(id);
  for (const id of nodes) if (!state.has(id)) visit(id);
  return turned;
}

function layersOf(nodes, arrows) {
  const layer = new Map(nodes.map((id) => [id, 0]));
  const missing = new Map(nodes.map((id) => [id, 0]));
  const out = new Map(nodes.map((id) => [id, []]));
  for (const each of arrows) {
    missing.set(each.to, missing.get(each.to) + 1);
    out.get(each.from).push(each.to);
  }
  const ready = nodes.filter((id) => !missing.get(id));
  while (ready.length) {
    const id = ready.shift();
    for (const next of out.get(id)) {
      layer.set(next, Math.max(layer.get(next), layer.get(id) + 1));
      missing.set(next, missing.get(next) - 1);
      if (!missing.get(next)) ready.push(next);
    }
  }
  // What has no way in stands right before what it leads to, not at the far left.
  const into = new Set(arrows.map((each) => each.to));
  for (const id of nodes) {
    const next = out.get(id);
    if (!into.has(id) && next.length) layer.set(id, Math.max(0, Math.min(...next.map((each) => layer.get(each))) - 1));
  }
  return layer;
}

const mean = (values) => values.reduce((sum, each) => sum + each, 0) / values.length;

/** Order layers so that few arrows cross: each place by the mean place of its neighbours, back and forth. */
function order(layers, before, after) {
  const at = new Map();
  const settle = (layer) => layer.forEach((id, place) => at.set(id, place));
  layers.forEach(settle);
  for (let round = 0; round < 8; round++) {
    const down = round % 2 === 0;
    const neighbours = down ? before : after;
    const some = down ? layers.slice(1) : layers.slice(0, -1).reverse();
    for (const layer of some) {
      const wish = new Map(layer.map((id) => [id, neighbours.get(id)?.length ? mean(neighbours.get(id).map((each) => at.get(each))) : at.get(id)]));
      layer.sort((one, other) => wish.get(one) - wish.get(other));
      settle(layer);
    }
  }
}

/** Heights: near the mean of the neighbours', in the layer's order, at least so far apart. */
function place(layers, before, after, room) {
  const y = new Map();
  const spread = (layer, wish) => {
    // Pushed apart from above and from below; the mean of both keeps groups in their middle.
    const down = [];
    const up = [];
    layer.forEach((id, at) => {
      const apart = at ? (room(layer[at - 1]) + room(id)) / 2 : 0;
      down.push(at ? Math.max(wish(id), down[at - 1] + apart) : wish(id));
    });
    for (let at = layer.length - 1; at >= 0; at--) {
      const apart = at < layer.length - 1 ? (room(layer[at + 1]) + room(layer[at])) / 2 : 0;
      up[at] = at < layer.length - 1 ? Math.min(wish(layer[at]), up[at + 1] - apart) : wish(layer[at]);
    }
    layer.forEach((id, at) => y.set(id, (down[at] + up[at]) / 2));
  };
  for (const layer of layers) {
    let next = 0;
    for (const id of layer) {
      y.set(id, next + room(id) / 2);
      next += room(id);
    }
    for (const id of layer) y.set(id, y.get(id) - next / 2);
  }
  for (let round = 0; round < 10; round++) {
    const down = round % 2 === 0;
    for (const layer of down ? layers : [...layers].reverse()) {
      spread(layer, (id) => {
        const near = [...(before.get(id) ?? []), ...(after.get(id) ?? [])];
        return near.length ? mean(near.map((each) => y.get(each))) : y.get(id);
      });
    }
  }
  return y;
}

/** A smooth line through points of (along the flow, across it). */
function curve(points, down) {
  const point = (one, other) => (down ? `${other.toFixed(1)} ${one.toFixed(1)}` : `${one.toFixed(1)} ${other.toFixed(1)}`);
  let path = `M${point(...points[0])}`;
  for (let at = 1; at < points.length; at++) {
    const [x0, y0] = points[at - 1];
    const [x1, y1] = points[at];
    const bend = (x1 - x0) / 2;
    path += `C${point(x0 + bend, y0)} ${point(x1 - bend, y1)} ${point(x1, y1)}`;
  }
  return path;
}

/**
 * Place a graph as of graph.js: {width, height, nodes: Map of id to {x, y} (upper left corner), arrows: Map of id to
 * {path, label: {x, y}}}. `down`: from top to bottom.
 */
export function layout({ nodes: told, arrows: joined }, down = false) {
  const size = down ? DOWN : ACROSS;
  const nodes = [...told.keys()];
  const out = new Map();
  for (const each of joined.values()) {
    if (each.from === each.target) continue;
    if (!out.has(each.from)) out.set(each.from, []);
    out.get(each.from).push(each);
  }
  const turned = backward(nodes, out);
  const forward = [...out.values()].flat().map((each) => (turned.has(each.id) ? { id: each.id, from: each.target, to: each.from } : { id: each.id, from: each.from, to: each.target }));
  const layer = layersOf(nodes, forward);
  const layers = Array.from({ length: Math.max(0, ...layer.values()) + 1 }, () => []);
  for (const id of nodes) layers[layer.get(id)].push(id);
  const before = new Map();
  const after = new Map();
  const add = (map, key, value) => (map.has(key) ? map.get(key).push(value) : map.set(key, [value]));
  const lanes = new Map();
  for (const each of forward) {
    const way = [each.from];
    for (let at = layer.get(each.from) + 1; at < layer.get(each.to); at++) {
      const lane = `lane ${each.id} ${at}`;
      layers[at].push(lane);
      way.push(lane);
    }
    way.push(each.to);
    lanes.set(each.id, way);
    for (let at = 1; at < way.length; at++) {
      add(before, way[at], way[at - 1]);
      add(after, way[at - 1], way[at]);
    }
  }
  order(layers, before, after);
  const across = place(layers, before, after, (id) => (told.has(id) ? size.apart : size.lane));
  const first = Math.min(...nodes.map((id) => across.get(id) - size.thick / 2), ...across.values()) - EDGE;
  const last = Math.max(...nodes.map((id) => across.get(id) + size.thick / 2), ...across.values()) + EDGE;
  const along = new Map();
  layers.forEach((ids, at) => ids.forEach((id) => along.set(id, EDGE + at * (size.along + size.gap))));
  const spot = (one, other) => (down ? { x: other, y: one } : { x: one, y: other });
  const placed = new Map(nodes.map((id) => [id, spot(along.get(id), across.get(id) - first - size.thick / 2)]));
  const drawn = new Map();
  const labels = [];
  for (const [id, way] of lanes) {
    const points = [];
    way.forEach((each, at) => {
      const middle = across.get(each) - first;
      // A lane is straight as long as the nodes beside it are.
      if (at > 0) points.push([along.get(each), middle]);
      if (at < way.length - 1) points.push([along.get(each) + size.along, middle]);
    });
    const back = turned.has(id);
    if (back) points.reverse();
    // Room for the head of the arrow.
    points[points.length - 1][0] += back ? 3 : -3;
    const start = back ? points.length - 2 : 0;
    const label = spot((points[start][0] + points[start + 1][0]) / 2, (points[start][1] + points[start + 1][1]) / 2);
    labels.push(label);
    drawn.set(id, { path: curve(points, down), label });
  }
  for (const id of nodes) {
    const loop = `${id}\n${id}`;
    if (!joined.has(loop)) continue;
    const { x, y } = placed.get(id);
    drawn.set(loop, { path: `M${x + WIDTH - 40} ${y}C${x + WIDTH - 40} ${y - 24} ${x + WIDTH + 30} ${y - 10} ${x + WIDTH + 2} ${y + 12}`, label: { x: x + WIDTH + 10, y: y - 14 } });
  }
  if (down) staggered(labels);
  else apart(labels);
  const length = EDGE * 2 + layers.length * size.along + (layers.length - 1) * size.gap;
  return { width: down ? last - first : length, height: down ? length : last - first, nodes: placed, arrows: drawn };
}

/** Labels in the same gap between rows: where two would touch, one stands a line lower. */
function staggered(labels) {
  const rows = new Map();
  for (const label of labels) {
    const key = Math.round(label.y);
    if (rows.has(key)) rows.get(key).push(label);
    else rows.set(key, [label]);
  }
  for (const row of rows.values()) {
    row.sort((one, other) => one.x - other.x);
    const ends = [-Infinity, -Infinity, -Infinity];
    for (const label of row) {
      const free = ends.findIndex((end) => end < label.x - 56);
      const line = free < 0 ? ends.indexOf(Math.min(...ends)) : free;
      ends[line] = label.x + 56;
      label.y += [0, -21, 21][line];
    }
  }
}

/** Labels do not cover each other, as far as some rounds of pushing them apart go. */
function apart(labels) {
  const [wide, high] = [112, 24];
  for (let round = 0; round < 8; round++) {
    labels.sort((one, other) => one.y - other.y);
    for (let at = 0; at < labels.length; at++) {
      for (let next = at + 1; next < labels.length && labels[next].y - labels[at].y < high; next++) {
        if (Math.abs(labels[next].x - labels[at].x) >= wide) continue;
        const short = high - (labels[next].y - labels[at].y);
        labels[at].y -= short / 2;
        labels[next].y += short / 2;
      }
    }
  }
}
