CREATE TABLE regions (region int PRIMARY KEY, name text NOT NULL);
INSERT INTO regions VALUES (1, 'north'), (2, 'east'), (3, 'south'), (4, 'west');
