// Divides.
const { serve } = require("web");

serve({ "POST /divide": (two) => Number(two.operandOne) / Number(two.operandTwo) });
