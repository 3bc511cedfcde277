// What a page is written with: Preact, its hooks, and templates in place of JSX.
import { Component, Fragment, createContext, h, render } from "../vendor/preact.js";
import htm from "../vendor/htm.js";

export * from "../vendor/hooks.js";
export { Component, Fragment, createContext, h, render };

export const html = htm.bind(h);

/** A component that is drawn again only when one of its properties is another value. */
export function memo(Drawn) {
  return class extends Component {
    shouldComponentUpdate(next) {
      const now = this.props;
      const names = Object.keys(next);
      return names.length !== Object.keys(now).length || names.some((name) => next[name] !== now[name]);
    }

    render(props) {
      return h(Drawn, props);
    }
  };
}

let last = 0;

/** An id for a label and what it labels, one for each call. */
export const newId = (kind) => `${kind}-${++last}`;
