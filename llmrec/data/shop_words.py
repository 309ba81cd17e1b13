"""The vocabulary of the synthetic shop: departments, brands, style lines, product categories.

The categories of a department are listed in the order in which users buy them: the first successor of a category is
the next one in the list.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Category:
    """A product category: titles use its nouns and sizes, descriptions and reviews use its features."""

    name: str
    nouns: tuple[str, ...]
    sizes: tuple[str, ...]
    features: tuple[str, ...]


@dataclass(frozen=True)
class Department:
    """Categories that share brands, materials and style lines; `styles` maps a style line to its purpose."""

    name: str
    brands: tuple[str, ...]
    styles: dict[str, str]
    materials: tuple[str, ...]
    categories: tuple[Category, ...]


COLORS = (
    "Moss Green", "Slate Grey", "Ocean Blue", "Sand", "Charcoal", "Ivory", "Rust Red", "Mustard",
    "Plum", "Sky Blue", "Copper", "Forest Green", "Pearl White", "Midnight Blue", "Coral", "Black",
)  # fmt: skip


def _categories(table: str) -> tuple[Category, ...]:
    """Parse one category per line, written as `name | noun, noun | size, size | feature, feature`."""

    def line(text: str) -> Category:
        name, *lists = (cell.strip() for cell in text.split("|"))
        nouns, sizes, features = (tuple(word.strip() for word in cell.split(",")) for cell in lists)
        return Category(name, nouns, sizes, features)

    return tuple(line(text) for text in table.strip().splitlines())


DEPARTMENTS = (
    Department(
        "Outdoor",
        ("Nordfell", "Kestrel Ridge", "Tarnwood", "Basecamp Co.", "Alpenrausch"),
        {
            "Trail": "long days on marked trails",
            "Summit": "cold nights above the tree line",
            "Family": "relaxed weekends with children",
            "Featherlight": "hikers who count every gram",
        },
        ("ripstop nylon", "recycled polyester", "waxed canvas", "anodised aluminium"),
        _categories("""
Backpacks | Hiking Backpack, Trekking Rucksack | 28 L, 45 L, 60 L | a padded hip belt, a ventilated back
Tents | Dome Tent, Tunnel Tent | 2 Person, 3 Person, 4 Person | a roomy porch, a fast pole system
Sleeping Bags | Sleeping Bag, Mummy Sleeping Bag | Regular, Long, Wide | a snug hood, a two-way zip
Sleeping Mats | Sleeping Mat, Camping Mattress | 3 cm, 6 cm, 9 cm | a quiet surface, a quick valve
Camping Stoves | Camping Stove, Gas Cooker | 1.8 kW, 2.6 kW, 3.5 kW | a wind shield, a piezo lighter
Camp Cookware | Camping Cook Set, Camp Kettle | 0.9 L, 1.5 L, 2.2 L | a folding handle, a lid that strains
"""),
    ),
    Department(
        "Kitchen",
        ("Olmetta", "Hearth & Rye", "Brassica", "Kupfermann", "Little Ladle"),
        {
            "Bistro": "cooks who like a professional feel",
            "Rustic": "farmhouse kitchens and slow meals",
            "Compact": "small flats with little storage",
            "Heritage": "recipes handed down in the family",
        },
        ("stainless steel", "stoneware", "beech wood", "borosilicate glass"),
        _categories("""
Coffee Grinders | Coffee Grinder, Burr Mill | 40 g, 80 g, 120 g | an even grind, a quiet gear
Coffee Makers | Pour-Over Coffee Maker, French Press | 0.35 L, 0.6 L, 1 L | a drip-free spout, a fine filter
Mugs | Coffee Mug, Latte Cup | 200 ml, 300 ml, 400 ml | a wide handle, a glazed rim
Kettles | Water Kettle, Gooseneck Kettle | 0.8 L, 1.2 L, 1.7 L | a steady pour, a cool grip
Baking Pans | Loaf Pan, Springform Pan | 20 cm, 24 cm, 28 cm | a non-stick coating, a leakproof rim
Mixing Bowls | Mixing Bowl, Dough Bowl | 1.5 L, 3 L, 5 L | a rubber foot, a pouring lip
"""),
    ),
    Department(
        "Beauty",
        ("Lumenelle", "Saltflower", "Dr. Ahrens", "Petit Savon", "Mirabelle Lab"),
        {
            "Sensitive": "skin that reddens easily",
            "Botanical": "people who prefer plant extracts",
            "Overnight": "deep care while you sleep",
            "Daily Shield": "city air and strong sun",
        },
        ("aloe vera", "oat milk", "shea butter", "green tea"),
        _categories("""
Cleansers | Face Wash, Cleansing Gel | 100 ml, 150 ml, 250 ml | a soft foam, a residue-free rinse
Toners | Face Toner, Balancing Mist | 100 ml, 200 ml, 300 ml | an alcohol-free formula, a fine spray
Serums | Face Serum, Vitamin Serum | 15 ml, 30 ml, 50 ml | a light texture, a glass dropper
Moisturisers | Day Cream, Face Lotion | 40 ml, 50 ml, 75 ml | a matte finish, a lasting moisture
Eye Care | Eye Cream, Eye Gel | 10 ml, 15 ml, 20 ml | a cooling tip, a de-puffing effect
Sunscreens | Sun Fluid, Sun Cream | SPF 20, SPF 30, SPF 50 | a clear finish, a water-resistant film
"""),
    ),
    Department(
        "Pets",
        ("Waggle & Co.", "Fernpaw", "Happy Burrow", "Tomcat Union", "Schnauzer & Sohn"),
        {
            "Puppy": "young animals that still grow",
            "Senior": "older animals with stiff joints",
            "Adventure": "animals that love muddy walks",
            "Indoor": "animals that live in a flat",
        },
        ("soft cotton", "tough rubber", "woven nylon", "food-safe silicone"),
        _categories("""
Collars | Dog Collar, Pet Harness | Small, Medium, Large | a reflective seam, a quick buckle
Leashes | Dog Leash, Training Lead | 1.2 m, 2 m, 5 m | a padded loop, a locking clip
Pet Bowls | Feeding Bowl, Water Bowl | 0.5 L, 1 L, 2 L | a non-slip base, a splash guard
Pet Beds | Pet Bed, Orthopaedic Cushion | 60 cm, 80 cm, 100 cm | a washable cover, a raised edge
Pet Toys | Chew Toy, Puzzle Feeder | Mini, Midi, Maxi | a hidden squeaker, a treat pocket
Grooming | Grooming Brush, Detangling Comb | 12 cm, 16 cm, 20 cm | a self-cleaning button, a gentle bristle
"""),
    ),
    Department(
        "Office",
        ("Inkwell & Sons", "Papyra", "Gridline", "Deskhaus", "Quillon"),
        {
            "Studio": "designers who sketch all day",
            "Executive": "meetings that should look sharp",
            "Campus": "students between two lectures",
            "Ergo": "long hours without sore wrists",
        },
        ("oak veneer", "brushed steel", "recycled paper", "vegan leather"),
        _categories("""
Notebooks | Dotted Notebook, Hardcover Journal | A6, A5, A4 | a lay-flat binding, a ribbon marker
Pens | Gel Pen, Fountain Pen | Fine, Medium, Broad | a smear-proof ink, a weighted barrel
Pencil Cases | Pencil Case, Pen Roll | 12 Slots, 24 Slots, 36 Slots | a sturdy zip, a stand-up base
Desk Organisers | Desk Organiser, Letter Tray | 3 Trays, 5 Trays, 7 Trays | a cable gap, a felt bottom
Desk Lamps | Desk Lamp, Clamp Lamp | 6 W, 9 W, 12 W | a flicker-free light, a swivel arm
Monitor Stands | Monitor Stand, Laptop Riser | 10 cm, 14 cm, 18 cm | a hidden drawer, a cooling slot
"""),
    ),
    Department(
        "Garden",
        ("Greenhollow", "Rake & Root", "Solstice Farm", "Blumwerk", "Thistledown"),
        {
            "Balcony": "small balconies and window sills",
            "Cottage": "wild borders full of flowers",
            "Harvest": "growing your own vegetables",
            "Evergreen": "gardens that need little care",
        },
        ("galvanised steel", "terracotta", "ash wood", "coconut fibre"),
        _categories("""
Seeds | Seed Set, Seed Mix | 5 Packs, 10 Packs, 20 Packs | a high germination rate, a sowing calendar
Seed Trays | Seed Tray, Mini Greenhouse | 12 Cells, 24 Cells, 40 Cells | a clear lid, a drain layer
Potting Soil | Potting Soil, Compost Blend | 10 L, 20 L, 40 L | a peat-free recipe, a slow-release feed
Planters | Planter Box, Flower Pot | 20 cm, 30 cm, 45 cm | a water reserve, a frost-proof wall
Hand Tools | Hand Trowel, Weeding Fork | Short, Medium, Long | a forged head, a comfortable grip
Watering Cans | Watering Can, Garden Sprayer | 1.5 L, 5 L, 10 L | a brass rose, a balanced spout
"""),
    ),
    Department(
        "Fitness",
        ("Stridewell", "Ironleaf", "Pulse Nine", "Korpa", "Lotus & Lift"),
        {
            "Studio Flow": "calm sessions on the mat",
            "Pro": "athletes with a training plan",
            "Starter": "first steps after a long break",
            "Travel": "workouts in a hotel room",
        },
        ("natural rubber", "cork", "knitted mesh", "cast iron"),
        _categories("""
Yoga Mats | Yoga Mat, Exercise Mat | 4 mm, 6 mm, 10 mm | a grippy surface, a carry strap
Yoga Blocks | Yoga Block, Yoga Wheel | 7 cm, 10 cm, 12 cm | a rounded edge, a firm core
Resistance Bands | Resistance Band, Loop Band | Light, Medium, Heavy | a snap-proof weave, a door anchor
Dumbbells | Dumbbell Pair, Kettlebell | 2 kg, 5 kg, 10 kg | a hexagonal head, a textured handle
Foam Rollers | Foam Roller, Massage Ball | 15 cm, 30 cm, 45 cm | a deep groove, a hollow body
Sports Bottles | Sports Bottle, Shaker Cup | 500 ml, 750 ml, 1 L | a one-hand cap, a leakproof seal
"""),
    ),
    Department(
        "Kids",
        ("Pebble & Pip", "Moonbadger", "Tinkerlund", "Kleine Welle", "Otterly"),
        {
            "Forest": "children who adore animals",
            "Space": "little astronauts",
            "First Steps": "toddlers who grab everything",
            "Maker": "curious hands that build and draw",
        },
        ("maple wood", "organic cotton", "thick cardboard", "BPA-free plastic"),
        _categories("""
Picture Books | Picture Book, Lift-the-Flap Book | 16 Pages, 24 Pages, 32 Pages | a rhyme, a sturdy spine
Plush Toys | Plush Toy, Cuddly Friend | 18 cm, 25 cm, 40 cm | an embroidered face, a washable filling
Building Blocks | Building Blocks, Stacking Set | 30 Pieces, 60 Pieces, 100 Pieces | a smooth edge, a bag
Puzzles | Jigsaw Puzzle, Floor Puzzle | 24 Parts, 48 Parts, 96 Parts | a poster to compare, a precise cut
Craft Kits | Craft Kit, Paint Set | Ages 3+, Ages 5+, Ages 7+ | an illustrated guide, a washable paint
Board Games | Board Game, Memory Game | 2 Players, 4 Players, 6 Players | a short round, a team mode
"""),
    ),
)

DESCRIPTIONS = (
    "The {noun} from {brand}'s {style} line is made for {purpose}. It comes in {color}, size {size}, with "
    "{feature} and {second}. Parts in contact with you use {material}.",
    "Made for {purpose}: this {brand} {noun} belongs to the {style} range. {Feature} and {second} set it "
    "apart. Finished in {color} with {material}.",
    "{brand} designed this {size} {noun} around {feature}. With {material} and {second}, the {style} "
    "edition suits {purpose}.",
    "Looking for something for {purpose}? The {style} {noun} by {brand} offers {feature} and {second}. "
    "{Material}, {color}, {size}.",
)
PRAISE = (
    "Love the {style} line, and this one has {feature}.",
    "Another great {brand} product. {Feature} makes all the difference.",
    "Exactly right for {purpose}. The {color} looks even better in real life.",
    "Good quality {material}, and {feature} works as promised.",
    "Bought it after my last {brand} order and I am happy again.",
)
COMPLAINTS = (
    "Decent, but {size} turned out not to be right for me.",
    "I expected more from {brand}; {feature} is only so so.",
    "The {color} is not what the picture shows.",
    "Fine for {purpose}, yet the {material} feels thin.",
)
