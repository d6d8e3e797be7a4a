/** A curve with the area under it, in SVG: a sparkline, or a chart. Colours come from the style sheet. */

import {svg} from "./dom.js";

export class Curve {
  #line = svg("polyline", {class: "curve-line", "vector-effect": "non-scaling-stroke"});
  #area = svg("polygon", {class: "curve-area"});

  /** @param {SVGElement} into @param {number} width @param {number} height in the units of its viewBox */
  constructor(into, width, height) {
    this.width = width;
    this.height = height;
    into.append(this.#area, this.#line);
  }

  /**
   * Draw values from left to right; the newest is at the right edge when there are `count` of them.
   * @param {number[]} values @param {number} most the value at the top @param {number} [count] how many fill it
   */
  draw(values, most, count = Math.max(values.length, 2)) {
    const step = this.width / (count - 1);
    const first = (count - values.length) * step;
    const top = Math.max(most, 1);
    const points = values.map((value, i) => {
      const y = this.height - 1 - (this.height - 3) * Math.min(value / top, 1);
      return `${(first + i * step).toFixed(1)},${y.toFixed(1)}`;
    });
    this.#line.setAttribute("points", points.join(" "));
    const last = (first + (values.length - 1) * step).toFixed(1);
    const floor = [`${last},${this.height}`, `${first.toFixed(1)},${this.height}`];
    this.#area.setAttribute("points", points.length ? [...points, ...floor].join(" ") : "");
  }
}
